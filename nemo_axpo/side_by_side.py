"""Several training runs at once, each a process of its own, shown in one display.

The runs share nothing but the machine: one thread each, so that two of them fill two cores.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from nemo_axpo.config.load import load_config
from nemo_axpo.errors import RunFailedError
from nemo_axpo.metrics_log import read_metrics
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.run_directory import check_same_run

_TORCHRUN = re.compile(r"[WE]\d{4} .*torch/distributed/elastic/")
POLL_S = 0.5
STOP_TIMEOUT_S = 20.0
"""Runs that are asked to stop get this long, all together, before they are killed."""


@dataclass(frozen=True)
class PlannedRun:
    """One ``nemo-axpo train``."""

    name: str
    """In the display; unique among the runs."""
    output_dir: Path
    settings: Sequence[str]
    """Config groups and overrides."""
    num_steps: int
    num_ranks: int = 1
    """Processes of the run; more than one are started by torchrun."""

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


def run_side_by_side(
    runs: Sequence[PlannedRun],
    *,
    max_parallel: int,
    progress: ProgressDisplay,
    command: Sequence[str] | None = None,
) -> None:
    """Runs all of them, ``max_parallel`` at a time, resuming what an earlier start left and skipping what it finished.

    ``command``: what is started for a run, before its options and settings; default :func:`train_command`. From the
    main thread only, which alone receives signals.

    ValueError for a directory that holds a run of other settings, before anything starts. RunFailedError names the first
    run that failed and shows the end of its log; the others are stopped. An interrupt (Ctrl-C, SIGTERM) stops all of them
    and raises KeyboardInterrupt; each keeps its last checkpoint. A second interrupt kills those that still run.
    """
    for run in runs:
        run.check()
    waiting = [run for run in runs if not run.is_finished]
    running: list[_Process] = []
    with _Interrupts() as interrupts:
        try:
            while waiting or running:
                while waiting and len(running) < max_parallel:
                    running.append(_start(waiting.pop(0), command=command, progress=progress))
                time.sleep(POLL_S)
                interrupts.check()
                running = [process for process in running if _follow(process, progress=progress)]
        finally:
            _stop(running, interrupts=interrupts)


def train_command(num_ranks: int) -> tuple[str, ...]:
    """``nemo-axpo train`` in one process, or in ``num_ranks`` of this machine."""
    if num_ranks == 1:
        return (sys.executable, "-m", "nemo_axpo.cli", "train")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    return (sys.executable, "-m", *torchrun, "-m", "nemo_axpo.cli", "train")


class _Interrupts:
    """Notes SIGINT and SIGTERM for the length of a block: raised anywhere, they could orphan a run that just started.

    What this process was told to ignore (SIGINT under ``nohup`` or a script's ``&``) it still ignores.
    """

    count: int = 0

    def __enter__(self) -> Self:
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.count += 1

    def check(self) -> None:
        """KeyboardInterrupt where a signal has come."""
        if self.count:
            raise KeyboardInterrupt


def _start(run: PlannedRun, *, command: Sequence[str] | None, progress: ProgressDisplay) -> _Process:
    run.output_dir.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*(command or train_command(run.num_ranks)), "--resume", "--output-dir", str(run.output_dir), *run.settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    progress.start(run.name, total=run.num_steps)
    with run.log_path.open("ab") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops its runs one by one.
        popen = subprocess.Popen(
            arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
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
        log = process.run.log_path
        raise RunFailedError(f"{process.run.name} failed; the end of {log}:\n{_end_of(log.read_text(errors='replace'))}")
    return is_running


def _end_of(log: str) -> str:
    """The last lines a rank wrote; what torchrun says when it stops the other ranks is left out."""
    lines = log.splitlines()
    about_others = (number for number, line in enumerate(lines) if _TORCHRUN.match(line))
    return "\n".join(lines[: next(about_others, len(lines))][-15:])


def _stop(processes: Sequence[_Process], *, interrupts: _Interrupts) -> None:
    """Asks all to stop; kills those that have not when the time is over or a further interrupt comes."""
    for process in processes:
        process.popen.terminate()
    deadline, count = time.monotonic() + STOP_TIMEOUT_S, interrupts.count
    while any(process.popen.poll() is None for process in processes):
        if time.monotonic() > deadline or interrupts.count > count:
            for process in processes:
                process.popen.kill()
                process.popen.wait()
        time.sleep(min(POLL_S, 0.05))
