"""``nemo-axpo eval``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_axpo.commands.options import add_config_options, check, composed_config, run_config


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``eval`` and its options."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a checkpoint",
        description="Evaluates a Hugging Face checkpoint: Pass@1, Pass@k, tool use, tool and direct accuracy.",
        epilog="example: nemo-axpo eval --checkpoint exported/ eval.num_questions=500",
    )
    add_config_options(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", required=True, help="what to evaluate (model.path)")
    parser.add_argument("--run", dest="run_dir", type=Path, metavar="DIR", help="take the settings of this run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON too")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    settings = {"model.path": str(options.checkpoint)}
    if options.run_dir is None:
        config = composed_config(options, settings=settings)
    else:
        config = run_config(options.run_dir, overrides=options.overrides, settings=settings)
    check(config, needs_policy=True)
    from nemo_axpo.eval.command import run_eval

    run_eval(config, output=options.output)
