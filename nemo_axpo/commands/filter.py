"""``nemo-axpo filter``."""

from __future__ import annotations

import argparse

from nemo_axpo.commands.options import add_config_options, add_output_dir, check, composed_config, output_setting


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``filter`` and its options."""
    parser = subparsers.add_parser(
        "filter",
        help="choose the questions worth reinforcement learning",
        description="Lets the policy answer every question K times and drops those it always solves, and those the teacher of "
        "filter.teacher never did. Writes kept.jsonl (for data.files[].keep) and a report with a histogram.",
        epilog="example: nemo-axpo filter data=paper model.path=outputs/sft/hf filter.teacher=outputs/distill "
        "--output-dir outputs/filter",
    )
    add_config_options(parser)
    add_output_dir(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the questions that were not attempted yet")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = composed_config(options, settings=output_setting(options))
    check(config, needs_policy=True)
    from nemo_axpo.distill.filter import run_filter

    run_filter(config, resume=options.resume)
