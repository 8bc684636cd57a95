"""What NeMo-Aligner's trainers log, as the rows of ``metrics.jsonl``, so that ``nemo-axpo report`` reads such a run too.

The trainers log a step in pieces, under prefixes: rollouts, every optimizer step, timers, validation. A row is written
before the next step, when a checkpoint is saved, and at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.loop import minibatch_metrics
from nemo_axpo.metrics_log import MetricsLog

_ROLLOUTS, _OPTIM, _TIMERS, _VALIDATION = "train_rollouts/", "train_optim/", "timers/", "val_rollouts/"
_STAGES = {"rollout_time": "rollout", "train_time": "update"}
"""The timers of a step's two stages, as the main loop calls them; the transfer of weights is part of the first one."""
_NOT_METRICS = ("rollout_size", "rewards", "consumed_samples", "epoch", "optim_step", "loss", "lr")
"""Names of the trainer itself; what they say stands in the row under our names."""


class RunLog:
    """A logger for ``CustomLoggerWrapper``. ``log``: None on all ranks but the one that writes."""

    def __init__(self, log: MetricsLog | None) -> None:
        self._log = log
        self._number: int | None = None
        self._row: dict[str, Any] = {}
        self._updates: list[dict[str, float]] = []

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One piece of a step. ``step``: finished steps when it was measured."""
        if not metrics:  # of a validation that was not due
            return
        prefix = next(
            (prefix for prefix in (_ROLLOUTS, _OPTIM, _TIMERS, _VALIDATION) if _all_start(metrics, prefix)), ""
        )
        number = (step or 0) + (prefix != _VALIDATION)
        if number != self._number:
            self.flush()
            self._number = number
        named = {name.removeprefix(prefix): value for name, value in metrics.items()}
        if prefix == _OPTIM:
            self._add_update(named)
        elif prefix == _TIMERS:
            self._row |= {f"time/{_STAGES.get(name, name)}_s": value for name, value in named.items()}
            self._row["time/step_s"] = sum(named.get(name, 0.0) for name in _STAGES)
        elif prefix == _VALIDATION:
            self._row |= {f"eval/{name}": value for name, value in named.items() if name not in _NOT_METRICS}
        else:
            self._row |= {name: value for name, value in named.items() if name not in _NOT_METRICS}

    def flush(self) -> None:
        """Writes the row of the step logged last."""
        if self._row or self._updates:
            self._row |= minibatch_metrics([update for update in self._updates if "update/loss" in update])
            if self._log is not None:
                self._log.log(self._number, self._row)
        self._row, self._updates = {}, []

    def finalize(self, status: str) -> None:
        """The last row."""
        self.flush()

    def _add_update(self, named: dict[str, Any]) -> None:
        values = {name: value for name, value in named.items() if name not in _NOT_METRICS}
        if "lr" in named:
            self._updates.append(values | {"update/lr": named["lr"]})
        else:
            self._updates[-1] |= values


def _all_start(metrics: Mapping[str, Any], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in metrics)
