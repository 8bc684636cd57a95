"""``nemo-axpo export``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``export`` and its options."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's policy as a Hugging Face checkpoint",
        description="Writes the policy of a run's training checkpoint as a checkpoint that transformers loads.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="directory to write")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint after N steps (default: the newest)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.export import export_checkpoint

    export_checkpoint(options.run_dir, output=options.output, step=options.step)
