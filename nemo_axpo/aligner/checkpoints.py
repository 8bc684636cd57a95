"""The trainer's checkpoint callback: it saves the run's own checkpoints, which ``nemo-axpo`` resumes and exports too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemo_axpo.run_checkpoints import RunCheckpoints

STATE = "aligner_trainer"
"""Where the trainer's counts are in a checkpoint's values."""
_COUNTS = ("step", "consumed_samples", "epoch", "reinforce_optimization_step")


class CheckpointCallback:
    """``custom_save`` as the trainer calls it; every rank does."""

    def __init__(self, checkpoints: RunCheckpoints, *, before: Callable[[], None]) -> None:
        """``before``: called first, to write what else belongs to the step."""
        self._checkpoints, self._before = checkpoints, before

    def custom_save(self, monitor_candidates: Mapping[str, Any], is_train_end: bool) -> None:
        """Saves after step ``monitor_candidates["step"]``; at the end of training it is on disk when this returns."""
        self._before()
        counts = {name: int(monitor_candidates[name]) for name in _COUNTS}
        self._checkpoints.save(counts["step"], state={STATE: counts})
        if is_train_end:
            self._checkpoints.finish()


def trainer_state(state: Mapping[str, Any], *, step: int, num_questions: int, num_minibatches: int) -> dict[str, int]:
    """The counts to restore; from a checkpoint of the main loop, which has none, those that follow from its step."""
    counts = {"step": step, "consumed_samples": step * num_questions, "epoch": 0}
    return dict(state.get(STATE, counts | {"reinforce_optimization_step": step * num_minibatches}))
