"""The three-way study: GRPO N=8, GRPO N=10 (matched rollouts) and AXPO from the same warm start, over several seeds.

    python benchmarks/study.py --seeds 30 31 32 33 34 --output-dir outputs/study --output benchmarks/results/study.json

The arms share code, settings, seeds and warm start and differ by the plan alone. A warm start outside of the window is
reported as such and trained all the same. A second call continues what the first one left.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from environment import argument_parser, write_result
from rich.console import Console

from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.quickstart import ARMS, NUM_STEPS, WarmStart, planned_runs, warm_start
from nemo_axpo.report.command import build_report
from nemo_axpo.side_by_side import run_side_by_side

Name = TypeVar("Name", bound=Hashable)


def main() -> None:
    """Warm starts, then every arm of every seed, then the report and the committed result."""
    options = parse_arguments()
    settings = [f"train.num_steps={options.num_steps}", *options.settings]
    directories = {seed: options.output_dir / f"seed_{seed}" for seed in options.seeds}
    own = {seed: [f"seed={seed}", *settings] for seed in options.seeds}
    starts = start_all(directories, settings=own, max_parallel=options.max_parallel)
    for seed, start in starts.items():
        print(f"seed {seed}: {'in the window' if not start.misses else '; '.join(start.misses)}")
    runs = list(
        itertools.chain.from_iterable(
            planned_runs(
                directories[seed],
                options.arms,
                start=start,
                settings=own[seed],
                num_steps=options.num_steps,
                prefix=f"seed {seed}, ",
            )
            for seed, start in starts.items()
        )
    )
    with ProgressDisplay() as progress:
        run_side_by_side(runs, max_parallel=options.max_parallel, progress=progress)
    report = build_report([options.output_dir], output=options.output_dir, console=Console())
    write_result(options.output, json.loads(report.summary.read_text()))


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("settings", nargs="*", help="settings for every run, e.g. world.daylight=30")
    parser.add_argument("--seeds", type=int, nargs="+", default=[30, 31, 32, 33, 34])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS)
    parser.add_argument("--max-parallel", type=int, default=2, help="processes at once, one thread each")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/study"))
    return parser.parse_args()


def start_all(
    directories: Mapping[Name, Path], *, settings: Mapping[Name, Sequence[str]], max_parallel: int
) -> dict[Name, WarmStart]:
    """Every warm start, several at once, one thread each."""
    with ThreadPoolExecutor(max_parallel) as pool:
        futures = {name: pool.submit(warm_start, path, settings=settings[name]) for name, path in directories.items()}
        return {name: future.result() for name, future in futures.items()}


if __name__ == "__main__":
    main()
