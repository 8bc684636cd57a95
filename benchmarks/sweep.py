"""Who learns the tool, over direct accuracy and tool accuracy after the warm start: the picture beyond the window.

    python benchmarks/sweep.py --output-dir outputs/sweep --output benchmarks/results/sweep.json

``world.daylight`` moves the direct accuracy, ``world.aim_rate`` the tool accuracy; everything else is the quickstart's.
Each point is one warm start with GRPO (matched rollouts) and AXPO trained from it. A second call continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from environment import argument_parser, write_result
from study import start_all

from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.quickstart import NUM_STEPS, planned_runs
from nemo_axpo.report.command import build_report
from nemo_axpo.side_by_side import run_side_by_side

ARMS = ("grpo_n10", "axpo")


def main() -> None:
    """Warm starts of every point, then both arms of each, then the picture and the committed result."""
    options = parse_arguments()
    steps = f"train.num_steps={options.num_steps}"
    points = {
        f"daylight_{daylight:g}_aim_{aim:g}_seed_{seed}": [
            f"seed={seed}",
            f"world.daylight={daylight}",
            f"world.aim_rate={aim}",
        ]
        for seed, daylight, aim in itertools.product(options.seeds, options.daylight, options.aim)
    }
    directories = {name: options.output_dir / name for name in points}
    starts = start_all(directories, settings={name: [*own, steps] for name, own in points.items()}, max_parallel=2)
    runs = [
        run
        for name, start in starts.items()
        for run in planned_runs(
            directories[name],
            ARMS,
            start=start,
            settings=[*points[name], steps],
            num_steps=options.num_steps,
            prefix=f"{name}, ",
        )
    ]
    with ProgressDisplay() as progress:
        run_side_by_side(runs, max_parallel=2, progress=progress)
    report = build_report([options.output_dir], output=options.output_dir)
    write_result(options.output, json.loads(report.summary.read_text()))


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--daylight", type=float, nargs="+", default=[20, 38, 90])
    parser.add_argument("--aim", type=float, nargs="+", default=[0.05, 0.35, 0.7])
    parser.add_argument("--seeds", type=int, nargs="+", default=[20])
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/sweep"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
