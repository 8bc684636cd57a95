"""Where a run stands: its final rates, read from the best source there is, in the words of the tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemo_axpo.report.runs import EVALUATION_NAMES, Arm, RunRecord

LEARNED, LOST = 0.8, 0.1
"""Final tool use from which on a policy has learned the tool, and up to which it has lost it."""
TITLES = {
    "pass@1": "Pass@1",
    "pass@4": "Pass@4",
    "tool_use": "Tool use",
    "tool_accuracy": "Tool accuracy",
    "direct_accuracy": "Direct accuracy",
    "all_wrong": "All-wrong rate",
    "recovered": "Recovered",
}
_TRAINING_NAME = {"pass@1": "accuracy"}
"""Where the rollouts of training measure the same thing under another name."""


@dataclass(frozen=True)
class Outcome:
    """Where a run stands, and what that was read from."""

    values: Mapping[str, float]
    """Rates in [0, 1] by the names of ``EVALUATION_NAMES``; a rate that was not measured is absent."""
    source: str
    """``final evaluation``, ``evaluation at step 120`` or ``training steps 101–120``."""


def outcome(run: RunRecord, *, num_training_steps: int = 20) -> Outcome:
    """The final evaluation, else the last one, else the mean of the last ``num_training_steps`` steps of training."""
    if run.final:
        return Outcome(run.final, "final evaluation")
    for row in reversed(run.metrics):
        values = {name: row[f"eval/{name}"] for name in EVALUATION_NAMES if f"eval/{name}" in row}
        if values:
            return Outcome(values, f"evaluation at step {int(row['step'])}")
    last = run.metrics[-num_training_steps:]
    if not last:
        return Outcome(run.initial, "before training")
    source = f"training steps {int(last[0]['step'])}–{int(last[-1]['step'])}"
    return Outcome(dict(_training_means(last)), source)


def _training_means(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, float]]:
    for name in EVALUATION_NAMES:
        key = f"rollout/{_TRAINING_NAME.get(name, name)}"
        values = [row[key] for row in rows if key in row]
        if values:
            yield name, math.fsum(values) / len(values)


def median_of(arm: Arm, name: str) -> float | None:
    """Median over the seeds of where an arm stands; None where no seed was measured."""
    return median_of_known(outcome(run).values.get(name) for run in arm.runs)


def start_of(arm: Arm, name: str) -> float | None:
    """Median over the seeds before training."""
    return median_of_known(run.initial.get(name) for run in arm.runs)


def median_of_known(values: Iterable[float | None]) -> float | None:
    """Median of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def tool_fate(tool_use: float | None) -> str:
    """``learned``, ``lost``, ``kept`` (between the two) or ``unknown``."""
    if tool_use is None:
        return "unknown"
    return "learned" if tool_use >= LEARNED else "lost" if tool_use <= LOST else "kept"


def percent(value: float | None, *, digits: int = 0) -> str:
    """``37%``; a dash where nothing was measured. ``digits``: behind the point."""
    return "–" if value is None else f"{value:.{digits}%}"
