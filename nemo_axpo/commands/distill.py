"""``nemo-axpo distill``."""

from __future__ import annotations

import argparse

from nemo_axpo.commands.options import add_config_options, add_output_dir, check, composed_config, output_setting


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``distill`` and its options."""
    parser = subparsers.add_parser(
        "distill",
        help="a teacher's right answers as trajectories for sft",
        description="Lets a teacher answer every question K times with tools on, keeps what is right, and writes trajectories "
        "that train token for token as they were sampled.",
        epilog="example: nemo-axpo distill data=paper model.path=teacher engine=vllm_server --output-dir outputs/distill",
    )
    add_config_options(parser)
    add_output_dir(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the questions that were not attempted yet")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = composed_config(options, settings=output_setting(options))
    # The scripted teacher of the embedded world starts with the tiny model, where none is given.
    check(config, needs_policy=config.distill.teacher != "scripted" or config.model.path is not None)
    from nemo_axpo.distill.command import run_distill

    run_distill(config, resume=options.resume)
