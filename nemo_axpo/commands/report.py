"""``nemo-axpo report``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``report`` and its options."""
    parser = subparsers.add_parser(
        "report",
        help="report.html, pictures and a table from runs",
        description="Reads every run in or below the directories, finished or not, and writes report.html and pictures.",
    )
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="run or study directory")
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory to write (default: the first DIR)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_axpo.report.command import build_report

    report = build_report(options.directories, output=options.output, console=Console())
    print(f"report: {report.html}")
