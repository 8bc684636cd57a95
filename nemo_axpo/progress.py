"""Live progress of one or more runs: step, rate, time left, a few metrics.

On a terminal a bar per run is redrawn; elsewhere (a log file, CI) a plain line is written every few seconds, so that a log
stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

SHOWN_METRICS = {
    "rollout/accuracy": "accuracy",
    "rollout/tool_use": "tool use",
    "rollout/all_wrong": "all-wrong",
    "update/loss": "loss",
}
"""Metrics shown while a run goes, and how they are called there."""
_WINDOW = 20
"""Steps over which the rate is measured: recent enough to follow it, long enough to be steady."""


@dataclass
class _Run:
    total: int
    times: list[tuple[int, float]]
    """(step, monotonic seconds) of the last steps; the first entry is the start."""
    task: TaskID | None = None

    @property
    def seconds_per_step(self) -> float | None:
        (first, begin), (last, end) = self.times[0], self.times[-1]
        return (end - begin) / (last - first) if last > first else None


class ProgressDisplay:
    """Shows how far each started run is. A context manager; outside of a terminal it prints plain lines."""

    def __init__(
        self,
        *,
        console: Console | None = None,
        shown: Mapping[str, str] | None = None,
        unit: str = "step",
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``shown``: metric name → label, in order. ``unit``: what is counted, in the singular.

        ``interval_s``: seconds between two plain lines of a run.
        """
        self._console = console or Console()
        self._shown = SHOWN_METRICS if shown is None else shown
        self._unit = unit
        self._interval_s = interval_s
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._last_line: dict[str, float] = {}
        self._bars = _bars(self._console) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars:
            self._bars.stop()

    def start(self, name: str, *, total: int, done: int = 0) -> None:
        """Adds a run of ``total`` steps of which ``done`` lie behind (a resumed run)."""
        self._runs[name] = _Run(total, [(done, self._clock())])
        if self._bars:
            self._runs[name].task = self._bars.add_task(name, total=total, completed=done, status="starting")

    def update(self, name: str, *, step: int, metrics: Mapping[str, float | None] | None = None) -> None:
        """The run ``name`` has finished ``step`` steps; the last one gave ``metrics``."""
        run = self._runs[name]
        run.times = [*run.times, (step, self._clock())][-_WINDOW - 1 :]
        status = " · ".join([*_pace(run, step=step, unit=self._unit), *self._labelled(metrics or {})])
        if self._bars:
            self._bars.update(run.task, completed=step, status=status)
        elif step >= run.total or self._is_due(name):
            self._print(f"{name}: {self._unit} {step}/{run.total} · {status}")

    def message(self, text: str) -> None:
        """A line that stays, above the bars."""
        (self._bars.console if self._bars else self._console).print(text, highlight=False, markup=False)

    def _labelled(self, metrics: Mapping[str, float | None]) -> Sequence[str]:
        found = ((label, metrics.get(name)) for name, label in self._shown.items())
        return [f"{label} {value:.2f}" for label, value in found if value is not None]

    def _is_due(self, name: str) -> bool:
        now = self._clock()
        due = now - self._last_line.get(name, float("-inf")) >= self._interval_s
        if due:
            self._last_line[name] = now
        return due

    def _print(self, text: str) -> None:
        # A log has no width: wrapped lines would be hard to search.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _pace(run: _Run, *, step: int, unit: str) -> list[str]:
    seconds = run.seconds_per_step
    if seconds is None:
        return []
    rate = f"{seconds:.2f} s/{unit}" if seconds >= 0.1 else f"{1 / max(seconds, 1e-9):.0f} {unit}s/s"
    return [rate, f"{format_seconds(max(run.total - step, 0) * seconds)} left"]


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
    )
