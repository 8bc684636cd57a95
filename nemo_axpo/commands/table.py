"""``nemo-axpo table``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``table`` and its options."""
    parser = subparsers.add_parser(
        "table",
        help="results of several evaluations in one table",
        description="Puts results of nemo-axpo eval --benchmark beside each other and beside the paper's: Markdown, LaTeX, a figure.",
        epilog="example: nemo-axpo table outputs/eval/* --output outputs/table",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="DIR", help="output directory of an evaluation")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where table and figure go")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.eval.benchmarks.outputs import write_tables
    from nemo_axpo.eval.benchmarks.results import read_result

    results = [read_result(directory) for directory in options.results]
    for path in write_tables(results, options.output):
        print(path)
