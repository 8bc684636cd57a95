"""``nemo-axpo doctor``."""

from __future__ import annotations

import argparse

from nemo_axpo.commands.options import add_config_options, check, composed_config


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``doctor`` and its options."""
    parser = subparsers.add_parser(
        "doctor",
        help="check that engine and trainer agree before a run",
        description="Compares engine and trainer on text, a picture and a tool's picture; training starts with the same.",
        epilog="example: nemo-axpo doctor model.path=outputs/sft/hf",
    )
    add_config_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = composed_config(options, settings={})
    check(config, needs_policy=True)
    from nemo_axpo.canaries.doctor import run_doctor

    run_doctor(config)
