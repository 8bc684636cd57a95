"""``nemo-axpo preflight``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_axpo.commands.options import add_config_options, add_nemo_config, composed_config


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``preflight`` and its options."""
    parser = subparsers.add_parser(
        "preflight",
        help="do the nodes of a job have what it needs?",
        description="Checks GPUs, a collective over all ranks, shared memory, mounts and versions on every rank of a job; job "
        "scripts run it first. Alone it checks this machine.",
        epilog="example: torchrun --nproc-per-node 8 -m nemo_axpo.cli preflight --config-name recipes/axpo_8b",
    )
    add_config_options(parser)
    add_nemo_config(parser)
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where the run will write (default: output_dir)")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="for the ranks to meet (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = composed_config(options, settings={})
    from nemo_axpo.errors import RunFailedError
    from nemo_axpo.launcher.preflight import Ranks, run_preflight, versions

    ranks = Ranks.from_environment()
    run_dir = options.run_dir or Path(config.output_dir)
    problems = run_preflight(config, run_dir=run_dir.absolute(), ranks=ranks, timeout_s=options.timeout_s)
    if problems:
        raise RunFailedError("\n".join(problems))
    if ranks.rank == 0:
        found = ", ".join(f"{name} {version}" for name, version in versions().items())
        ranks_in_words = "1 rank" if ranks.world_size == 1 else f"{ranks.world_size} ranks"
        print(f"preflight: {ranks_in_words}, all well: {found}")
