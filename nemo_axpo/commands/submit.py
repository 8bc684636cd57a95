"""``nemo-axpo submit``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_axpo.launcher.job_request import JobRequest

_OWN = ("--cluster", "--kubernetes", "--set", "--name", "--dependency", "--dry-run")


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``submit`` and its options."""
    parser = subparsers.add_parser(
        "submit",
        help="queue a command on a Slurm cluster, or write it for Kubernetes",
        description="Writes the job script of a nemo-axpo command (trainer, generation servers, tool servers) and gives it to "
        "sbatch; prints the job's number.",
        epilog="example: nemo-axpo submit --cluster mine.yaml -- train --config-name recipes/axpo_8b model.path=/models/sft_8b",
    )
    parser.add_argument("--cluster", default="slurm", metavar="FILE", help="a file like conf/cluster/slurm.yaml")
    parser.add_argument(
        "--kubernetes",
        metavar="FILE",
        help="a file like conf/kubernetes/k8s.yaml: print a manifest for kubectl apply -f -",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the cluster's file")
    parser.add_argument("--name", help="of the job (default: the run directory's name)")
    parser.add_argument("--dependency", metavar="SPEC", help="as sbatch takes it, e.g. afterok:123")
    parser.add_argument("--dry-run", action="store_true", help="print the script, write and queue nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- train|sft|eval|table and its options")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    request = _request(options)
    if options.kubernetes is not None:
        from nemo_axpo.launcher.kubernetes import manifest
        from nemo_axpo.launcher.kubernetes_cluster import load_kubernetes

        print(manifest(request, load_kubernetes(options.kubernetes, changes=options.set)), end="")
        return
    from nemo_axpo.launcher.job_script import sbatch_text
    from nemo_axpo.launcher.submission import check_place, submit

    check_place(request)
    _warn_of_inputs(request)
    text = sbatch_text(request)
    print(text if options.dry_run else submit(request, text), end="" if options.dry_run else "\n")


def _check_order(words: Sequence[str]) -> None:
    """ConfigError for options of ``submit`` behind the command, which has none of them."""
    from nemo_axpo.errors import ConfigError, rule_message

    behind = [word for word in words if word.partition("=")[0] in _OWN]
    if behind:
        cure = f"nemo-axpo submit {behind[0]} ... -- {words[0]} ..."
        raise ConfigError(rule_message("options of submit stand before the command", got=behind[0], cure=cure))


def _warn_of_inputs(request: JobRequest) -> None:
    """Says what the job reads outside its mounts: no error, as enroot may mount file systems of its own accord."""
    import logging

    from nemo_axpo.launcher.inputs import outside_mounts

    found = outside_mounts(request.config, cluster=request.cluster)
    if found:
        said = "in no mount of the container (mounts, workdir): %s; the job looks for them before it loads anything"
        logging.getLogger(__name__).warning(said, ", ".join(found))


def _check_options(options: argparse.Namespace) -> None:
    """ConfigError for a wait that only Slurm can do."""
    from nemo_axpo.errors import ConfigError, rule_message

    if options.kubernetes is not None and options.dependency is not None:
        cure = "apply the second manifest when the first job has succeeded: kubectl wait pytorchjob/NAME"
        raise ConfigError(rule_message("Kubernetes starts jobs at once", got=f"--dependency {options.dependency}", cure=cure))


def _request(options: argparse.Namespace) -> JobRequest:
    from nemo_axpo.cli import parse_arguments
    from nemo_axpo.launcher.cluster import load_cluster
    from nemo_axpo.launcher.submission import check_command, job_request

    _check_options(options)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    check_command(words)
    _check_order(words)
    inner = parse_arguments(words)
    cluster = load_cluster(options.cluster, changes=options.set if options.kubernetes is None else ())
    return job_request(words, inner, cluster=cluster, name=options.name, dependency=options.dependency,
                       start=Path(cluster.workdir))  # fmt: skip
