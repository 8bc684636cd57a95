"""``nemo-axpo sft``."""

from __future__ import annotations

import argparse

from nemo_axpo.commands.options import add_config_options, add_output_dir, check, composed_config, output_setting


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``sft`` and its options."""
    parser = subparsers.add_parser(
        "sft",
        help="supervised training on trajectories, or the warm start",
        description="Trains the policy to imitate trajectories (sft.trajectories), or the warm start of the embedded world, "
        "so that reinforcement learning starts from one that acts.",
        epilog="example: nemo-axpo sft model.path=student 'sft.trajectories=[outputs/distill]' actor.freeze_vision=true",
    )
    add_config_options(parser)
    add_output_dir(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the output directory from its last checkpoint (start it where there is none)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = composed_config(options, settings=output_setting(options))
    check(config, needs_policy=False)
    from nemo_axpo.sft import run_sft

    run_sft(config, resume=options.resume)
