"""``nemo-axpo quickstart``: warm start, GRPO beside AXPO, and the report; the same commands a user would type.

Everything lands in one directory: ``warm_start/``, ``grpo_n10/``, ``axpo/``, ``summary.json``, ``report.html`` and pictures.
A second call continues what the first one left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nemo_axpo.config.load import load_config
from nemo_axpo.errors import ConfigError, RunFailedError
from nemo_axpo.progress import ProgressDisplay, format_seconds
from nemo_axpo.run_directory import check_same_run, remove_run
from nemo_axpo.sft import CHECKPOINT, MEASURED
from nemo_axpo.side_by_side import PlannedRun, run_side_by_side
from nemo_axpo.world.window import WarmStartWindow

SMOKE_SETTINGS = ("eval.num_questions=24", "train.record_every=1", "train.eval_every=2")
SMOKE_STEPS, SMOKE_SFT = 4, ("sft.num_steps=30", "eval.window_questions=24")
NUM_STEPS = 120
ARMS = {
    "grpo_n8": ("algorithm=grpo", "algorithm.num_rollouts=8"),
    "grpo_n10": ("algorithm=grpo", "algorithm.num_rollouts=10"),
    "axpo": ("algorithm=axpo", "algorithm.num_rollouts=8"),
}
"""N = 10 gives GRPO as many rollouts as AXPO has with its resamples: N · (1 + r) = 10."""


@dataclass(frozen=True)
class WarmStart:
    """A measured warm start."""

    checkpoint: Path
    rates: dict[str, float]

    @property
    def misses(self) -> list[str]:
        """What lies outside of the window in which the gap can show."""
        return WarmStartWindow().misses(self.rates)


def run_quickstart(*, output_dir: Path, seed: int, smoke: bool, device: str, tensor_parallel: int = 1) -> None:
    """The whole path. ConfigError with the numbers and the cure where the warm start misses the window.

    ``tensor_parallel``: ranks that share the model of each of the two runs; the warm start is one process.
    Leaves a report of whatever exists, also when it is interrupted.
    """
    console, started = Console(), time.perf_counter()
    num_steps = SMOKE_STEPS if smoke else NUM_STEPS
    settings = [f"seed={seed}", f"device={device}", f"train.num_steps={num_steps}", *(SMOKE_SETTINGS if smoke else ())]
    console.print("1/3  warm start: a tiny Qwen3-VL learns the form of tool calls and answers")
    start = warm_start(output_dir, settings=[*settings, *(SMOKE_SFT if smoke else ())])
    _report_start(start, console=console, is_checked=not smoke)
    console.print("2/3  reinforcement learning: GRPO (N=10, as many rollouts as AXPO) beside AXPO")
    runs = planned_runs(
        output_dir,
        ["grpo_n10", "axpo"],
        start=start,
        settings=settings,
        num_steps=num_steps,
        tensor_parallel=tensor_parallel,
    )
    try:
        with ProgressDisplay(console=console) as progress:
            run_side_by_side(runs, max_parallel=2, progress=progress)
    finally:
        console.print("3/3  report")
        _write_report(output_dir, console=console)
    if smoke:
        console.print("smoke: every part works; what AXPO learns needs a run without --smoke")
    console.print(f"done in {format_seconds(time.perf_counter() - started)}")


def warm_start(output_dir: Path, *, settings: Sequence[str]) -> WarmStart:
    """Trains and measures the warm start in a process of its own, unless an earlier call has.

    RunDirectoryError where the directory holds a warm start of other settings.
    """
    path = output_dir / "warm_start"
    check_same_run(load_config(settings, settings={"output_dir": str(path)}))
    if not (path / MEASURED).is_file():
        # Without a measurement it did not finish; supervised training is short and starts again.
        remove_run(path)
        command = [sys.executable, "-m", "nemo_axpo.cli", "sft", "--output-dir", str(path), *settings]
        # A second thread gains nothing on tensors this small, and on a busy machine the two wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if subprocess.run(command, check=False, env=environment).returncode:
            raise RunFailedError("the warm start failed; what it said stands above")
    return WarmStart(path / CHECKPOINT, json.loads((path / MEASURED).read_text()))


def planned_runs(
    output_dir: Path,
    arms: Sequence[str],
    *,
    start: WarmStart,
    settings: Sequence[str],
    num_steps: int,
    prefix: str = "",
    tensor_parallel: int = 1,
) -> list[PlannedRun]:
    """Training runs that differ in their arm's settings alone. ``prefix`` goes before their names in the display."""
    shared = [f"model.path={start.checkpoint}", *settings]
    if tensor_parallel != 1:
        shared.append(f"actor.tensor_parallel={tensor_parallel}")
    return [
        PlannedRun(prefix + arm, output_dir / arm, [*shared, *ARMS[arm]], num_steps, tensor_parallel) for arm in arms
    ]


def _report_start(start: WarmStart, *, console: Console, is_checked: bool) -> None:
    names = ("tool_use", "tool_accuracy", "direct_accuracy", "all_wrong")
    console.print(
        "     " + ", ".join(f"{name} {start.rates[name]:.3f}" for name in names if start.rates[name] is not None)
    )
    if is_checked and start.misses:
        lines = "\n  ".join(start.misses)
        raise ConfigError(
            f"the warm start must land in the window in which the gap can show; it missed:\n  {lines}\n"
            "try another --seed, or change the settings named above in conf/config.yaml and delete the output directory"
        )


def _write_report(output_dir: Path, *, console: Console) -> None:
    from nemo_axpo.report.command import build_report

    try:
        report = build_report([output_dir], output=output_dir, console=console)
    except ValueError as error:  # interrupted before the first step: nothing to show
        console.print(f"no report yet: {error}", markup=False)
    else:
        console.print(f"report: {report.html}", markup=False, soft_wrap=True)

