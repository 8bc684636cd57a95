"""``nemo-axpo train``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nemo_axpo.commands.options import (
    add_config_options,
    add_nemo_config,
    add_output_dir,
    check,
    composed_config,
    nemo_run,
    output_setting,
    run_config,
)
from nemo_axpo.extras import require_extra

if TYPE_CHECKING:
    from nemo_axpo.config.schema import Config


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``train`` and its options."""
    parser = subparsers.add_parser(
        "train",
        help="reinforcement learning with AXPO or GRPO",
        description="Trains a policy with reinforcement learning and writes a run directory.",
        epilog="example: nemo-axpo train algorithm=grpo model.path=outputs/sft/hf --output-dir outputs/grpo",
    )
    add_config_options(parser)
    add_nemo_config(parser)
    add_output_dir(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the output directory from its last checkpoint (start it where there is none); "
        "without settings the run's own config is used",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = _train_config(options)
    check(config, needs_policy=True)
    if config.loop == "aligner":
        require_extra("nemo")
        from nemo_axpo.aligner.fit import run_training
    else:
        from nemo_axpo.train import run_training

    resume = options.resume or (options.nemo_config is not None and nemo_run(options).resume)
    run_training(config, resume=resume)


def _train_config(options: argparse.Namespace) -> Config:
    """The composed config; resuming with nothing but a directory takes the run's own."""
    said_more = options.overrides or options.config_name or options.config_dir or options.nemo_config
    if options.resume and options.output_dir and not said_more and (options.output_dir / "config.yaml").exists():
        return run_config(options.output_dir, settings=output_setting(options))
    return composed_config(options, settings=output_setting(options))
