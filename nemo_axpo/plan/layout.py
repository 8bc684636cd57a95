"""Where every rank of a job stands: its share of the model, its replica, its node.

Megatron numbers ranks tensor-parallel first, then data-parallel, then pipeline (its default order ``tp-cp-ep-dp-pp``)::

    rank = tp_rank + TP · (dp_rank + DP · pp_rank)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankPlace:
    """One rank."""

    rank: int
    node: int
    tp_rank: int
    dp_rank: int
    pp_rank: int

    @property
    def is_leader(self) -> bool:
        """Whether it runs its replica's rollouts."""
        return self.tp_rank == 0 and self.pp_rank == 0


@dataclass(frozen=True)
class JobLayout:
    """TP × PP ranks hold one model, DP replicas of it train together."""

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    gpus_per_node: int

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def num_nodes(self) -> int:
        """Nodes; the last one may be partly used."""
        return -(-self.world_size // self.gpus_per_node)

    def place_of(self, rank: int) -> RankPlace:
        """Where ``rank`` stands."""
        tp_rank, rest = rank % self.tensor_parallel, rank // self.tensor_parallel
        dp_rank, pp_rank = rest % self.data_parallel, rest // self.data_parallel
        return RankPlace(rank, rank // self.gpus_per_node, tp_rank, dp_rank, pp_rank)

    def places(self) -> list[RankPlace]:
        """Every rank."""
        return [self.place_of(rank) for rank in range(self.world_size)]

    def tensor_groups_across_nodes(self) -> int:
        """Tensor-parallel groups whose ranks do not share a node."""
        nodes: dict[tuple[int, int], set[int]] = {}
        for place in self.places():
            nodes.setdefault((place.dp_rank, place.pp_rank), set()).add(place.node)
        return sum(len(group) > 1 for group in nodes.values())

    def replica_nodes(self, dp_rank: int) -> list[int]:
        """Nodes over which one replica is spread."""
        return sorted({place.node for place in self.places() if place.dp_rank == dp_rank})
