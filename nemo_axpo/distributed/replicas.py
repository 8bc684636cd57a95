"""What the loop asks of the ranks of a job. One process is the case in which there is nothing to exchange.

A replica is the ranks that hold one model together (tensor x pipeline parallel); replicas are data-parallel. The leader
of a replica samples for it. Its rows stay where they were sampled until the step's credits are known: until then ranks
exchange scalars alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from nemo_axpo.types import TrainingSample

Record = TypeVar("Record")


class Replicas(Protocol):
    """This rank's view of the job. Every rank calls every method, in the same order."""

    @property
    def index(self) -> int:
        """Number of this rank's replica."""

    @property
    def count(self) -> int:
        """Data-parallel replicas of the job."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank samples for its replica."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what the job leaves on disk: exactly one does."""

    def gather(self, records: Sequence[Record], *, kind: type[Record]) -> tuple[Record, ...]:
        """The records of all ranks, rank by rank, equal on every rank.

        ``kind``: a dataclass of numbers, strings, booleans and None; floats arrive bit for bit.
        """

    def move(
        self, samples: Sequence[TrainingSample], *, replica_of: Mapping[str, int], image_store: Any
    ) -> tuple[TrainingSample, ...]:
        """The samples of all leaders which ``replica_of`` (rollout id → replica) gives to this replica, by rollout id.

        Equal on all ranks of the replica, whose image stores then hold the images of these samples.
        """

    def take_num_bytes(self) -> dict[str, int]:
        """Bytes this rank has sent since the last call: ``records`` (scalars) and ``samples`` (rows and images)."""


@dataclass(frozen=True)
class OneProcess:
    """The whole job is this process."""

    index: int = 0
    count: int = 1
    is_leader: bool = True
    is_main: bool = True

    def gather(self, records: Sequence[Record], *, kind: type[Record]) -> tuple[Record, ...]:
        """The records themselves."""
        return tuple(records)

    def move(
        self, samples: Sequence[TrainingSample], *, replica_of: Mapping[str, int], image_store: Any
    ) -> tuple[TrainingSample, ...]:
        """Those of ``samples`` that are to be trained."""
        return tuple(sample for sample in samples if sample.rollout_id in replica_of)

    def take_num_bytes(self) -> dict[str, int]:
        """Nothing is sent."""
        return {"records": 0, "samples": 0}
