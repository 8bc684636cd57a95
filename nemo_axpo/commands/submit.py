"""``nemo-axpo submit``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_axpo.launcher.job_request import JobRequest


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``submit`` and its options."""
    parser = subparsers.add_parser(
        "submit",
        help="queue a command on a Slurm cluster",
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
        from nemo_axpo.launcher.kubernetes import load_kubernetes, manifest

        print(manifest(request, load_kubernetes(options.kubernetes)), end="")
        return
    from nemo_axpo.launcher.job_script import sbatch_text
    from nemo_axpo.launcher.submission import check_place, submit

    check_place(request)
    text = sbatch_text(request)
    print(text if options.dry_run else submit(request, text), end="" if options.dry_run else "\n")


def _request(options: argparse.Namespace) -> JobRequest:
    from nemo_axpo.cli import parse_arguments
    from nemo_axpo.launcher.cluster import load_cluster
    from nemo_axpo.launcher.submission import check_command, job_request

    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    check_command(words)
    inner = parse_arguments(words)
    cluster = load_cluster(options.cluster, changes=options.set)
    return job_request(words, inner, cluster=cluster, name=options.name, dependency=options.dependency,
                       start=Path(cluster.workdir))  # fmt: skip
