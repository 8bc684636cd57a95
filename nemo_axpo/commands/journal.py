"""``nemo-axpo journal``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``journal`` and its options."""
    parser = subparsers.add_parser(
        "journal",
        help="verify that a run lost no question and trained none twice",
        description="Replays a run's journal.jsonl, resumes included, and says whether every question was trained once.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.journal import print_verdict

    print_verdict(options.run_dir)
