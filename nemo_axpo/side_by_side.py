"""Several training runs at once, each a process of its own, shown in one display.

The runs share nothing but the machine: one thread each, so that two of them fill two cores.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_axpo.config.load import load_config
from nemo_axpo.errors import RunFailedError
from nemo_axpo.metrics_log import read_metrics
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.run_directory import check_same_run

POLL_S = 0.5
STOP_TIMEOUT_S = 20.0
"""A run that is asked to stop gets this long before it is killed."""


@dataclass(frozen=True)
class PlannedRun:
    """One ``nemo-axpo train``."""

    name: str
    """In the display; unique among the runs."""
    output_dir: Path
    settings: Sequence[str]
    """Config groups and overrides."""
    num_steps: int

    @property
    def log_path(self) -> Path:
        """Everything the process prints."""
        return self.output_dir.parent / f"{self.output_dir.name}.log"

    @property
    def is_finished(self) -> bool:
        """Whether an earlier start completed it: the exported policy is written last."""
        rows = self.rows()
        return bool(rows) and rows[-1]["step"] == self.num_steps and (self.output_dir / "hf" / "config.json").is_file()

    def rows(self) -> list[dict[str, Any]]:
        """Metrics of the steps so far."""
        path = self.output_dir / "metrics.jsonl"
        return read_metrics(path) if path.is_file() else []

    def check(self) -> None:
        """ValueError for settings that cannot work, and where the directory holds a run of other ones."""
        check_same_run(load_config(self.settings, settings={"output_dir": str(self.output_dir)}))


@dataclass
class _Process:
    run: PlannedRun
    popen: subprocess.Popen[bytes]
    shown_step: int = field(default=-1)


def run_side_by_side(runs: Sequence[PlannedRun], *, max_parallel: int, progress: ProgressDisplay) -> None:
    """Runs all of them, ``max_parallel`` at a time, resuming what an earlier start left and skipping what it finished.

    ValueError for a directory that holds a run of other settings, before anything starts. RunFailedError names the first
    run that failed and shows the end of its log; the others are stopped. An interrupt stops all of them; each keeps its
    last checkpoint.
    """
    for run in runs:
        run.check()
    waiting = [run for run in runs if not run.is_finished]
    running: list[_Process] = []
    # Slurm and `kill` send SIGTERM, which would end this process without the block below and orphan the runs.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < max_parallel:
                running.append(_start(waiting.pop(0), progress=progress))
            time.sleep(POLL_S)
            running = [process for process in running if _follow(process, progress=progress)]
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _start(run: PlannedRun, *, progress: ProgressDisplay) -> _Process:
    run.output_dir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nemo_axpo.cli", "train", "--resume", "--output-dir", str(run.output_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    progress.start(run.name, total=run.num_steps)
    with run.log_path.open("ab") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops its runs one by one.
        popen = subprocess.Popen(
            [*command, *run.settings], stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    return _Process(run, popen)


def _follow(process: _Process, *, progress: ProgressDisplay) -> bool:
    """Shows the newest step; whether the process still runs."""
    is_running = process.popen.poll() is None
    rows = process.run.rows()
    if rows and rows[-1]["step"] != process.shown_step:
        process.shown_step = rows[-1]["step"]
        progress.update(process.run.name, step=process.shown_step, metrics=rows[-1])
    if not is_running and process.popen.returncode:
        tail = "\n".join(process.run.log_path.read_text(errors="replace").splitlines()[-15:])
        raise RunFailedError(f"{process.run.name} failed; the end of {process.run.log_path}:\n{tail}")
    return is_running


def _stop(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.popen.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(STOP_TIMEOUT_S)
        if process.popen.poll() is None:
            process.popen.kill()
