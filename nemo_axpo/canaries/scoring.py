"""Rows that the leaders sampled, scored by the trainer; every rank of the job takes part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nemo_axpo.data.images import ImageStore
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.types import TrainingSample


def trainer_logprobs(
    rows: Sequence[TrainingSample],
    *,
    ids_of: Callable[[int], Iterable[str]],
    actor: Any,
    replicas: Replicas,
    image_store: ImageStore,
) -> dict[str, list[float]]:
    """The trainer's log-probs ``[T]`` of this replica's rows by rollout id, on every rank of it.

    ``rows``: of the leader, none on other ranks. ``ids_of``: the ids that a replica's rows have.
    """
    replica_of = {row: replica for replica in range(replicas.count) for row in ids_of(replica)}
    moved = replicas.move(rows, replica_of=replica_of, image_store=image_store)
    return {row.rollout_id: score.tolist() for row, score in zip(moved, actor.logprobs(moved), strict=True)}
