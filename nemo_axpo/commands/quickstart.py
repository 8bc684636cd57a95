"""``nemo-axpo quickstart``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``quickstart`` and its options."""
    parser = subparsers.add_parser(
        "quickstart",
        help="teach a tiny model to use a tool: GRPO beside AXPO",
        description="Warm start, GRPO and AXPO on the embedded world, evaluation, report.html.",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR",
                        help="where everything goes (default: outputs/quickstart, or outputs/smoke)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="root of all randomness (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="the whole path in about a minute; shows that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--tp", type=int, default=1, metavar="N",
                        help="tensor-parallel ranks of each run (default: %(default)s)")  # fmt: skip
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.quickstart import run_quickstart

    output_dir = options.output_dir or Path("outputs/smoke" if options.smoke else "outputs/quickstart")
    run_quickstart(
        output_dir=output_dir,
        seed=options.seed,
        smoke=options.smoke,
        device=options.device,
        tensor_parallel=options.tp,
    )
