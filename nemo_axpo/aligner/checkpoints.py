"""The trainer's checkpoint callback: it saves the run's own checkpoints, which ``nemo-axpo`` resumes and exports too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemo_axpo.config.schema import Config
from nemo_axpo.run_checkpoints import RunCheckpoints


class CheckpointCallback:
    """``custom_save`` as the trainer calls it; every rank makes every call."""

    def __init__(self, checkpoints: RunCheckpoints, *, before: Callable[[], None]) -> None:
        """``before``: called first, to write what else belongs to the step before."""
        self._checkpoints, self._before = checkpoints, before

    def custom_save(self, monitor_candidates: Mapping[str, Any], is_train_end: bool) -> None:
        """Saves after step ``monitor_candidates["step"]``; at the end of training it is on disk when this returns."""
        self._before()
        self._checkpoints.save(int(monitor_candidates["step"]))
        if is_train_end:
            self._checkpoints.finish()

    def between_steps(self) -> None:
        """Publishes the checkpoint that is being written, if it is on disk."""
        self._before()
        self._checkpoints.finish(wait=False)


def trainer_state(config: Config, *, step: int) -> dict[str, int]:
    """The trainer's ``state_dict`` after ``step`` steps: its counts follow from the step, so that checkpoints of both loops are
    the same."""
    return {
        "step": step,
        "consumed_samples": step * config.data.num_questions_per_step,
        "epoch": 0,
        "reinforce_optimization_step": step * config.actor.num_minibatches,
    }
