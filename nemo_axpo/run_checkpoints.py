"""Checkpoints of a training run: its actor, its place in the data, its random states."""

from __future__ import annotations

from typing import Any

from nemo_axpo.actors.random_states import random_states, set_random_states
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.run_directory import RunDirectory


def checkpoint_store(config: Config, *, run: RunDirectory) -> CheckpointStore:
    """Where a run keeps its checkpoints, and how it writes them."""
    return CheckpointStore(
        run.checkpoints_path,
        keep=config.train.keep_checkpoints,
        is_async=config.train.checkpoint_async,
        timeout_s=60 * config.job.timeout_min,
    )


class RunCheckpoints:
    """Saves between two steps and restores; every rank of the job makes every call."""

    def __init__(self, config: Config, *, run: RunDirectory, actor: Any, replicas: Replicas) -> None:
        self._config, self._actor, self._replicas = config, actor, replicas
        self._store = checkpoint_store(config, run=run)

    def save(self, number: int) -> None:
        """After step ``number``, where no question is in flight: the data position is what the next step asks first."""
        questions = {"next": number * self._config.data.num_questions_per_step, "in_flight": []}
        state = {"actor": self._actor.state_values(), "questions": questions, "layout": self._layout()}
        self._store.save(number, tensors=self._actor.sharded_state(), state=state, random_states=random_states())

    def finish(self, *, wait: bool = True) -> None:
        """Publishes what is being written; without ``wait`` only what is done."""
        self._store.finish(wait=wait)

    def rescue(self) -> None:
        """Publishes what is being written when an error ends the run, if that ends every rank; raises nothing."""
        self._store.rescue()

    def restore(self) -> int:
        """Loads the newest checkpoint; the number of finished steps, 0 without one.

        Random states belong to a rank of a layout: under another one the generators stay as seeded.
        """
        if not self._store.steps():
            return 0
        checkpoint = self._store.read()
        tensors = checkpoint.load_tensors(self._actor.sharded_state(is_loading=True))
        self._actor.load_state(tensors, checkpoint.state["actor"])
        states = checkpoint.random_states()
        if states and checkpoint.state["layout"] == self._layout():
            set_random_states(states)
        return checkpoint.step

    def _layout(self) -> dict[str, int]:
        actor = self._config.actor
        sizes = {"tensor_parallel": actor.tensor_parallel, "pipeline_parallel": actor.pipeline_parallel}
        return sizes | {"replicas": self._replicas.count}
