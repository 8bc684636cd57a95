"""Which rows of a step are trained in which mini-batch, and on which replica: decided from scalars, equally on every rank.

A mini-batch holds whole questions, drawn over all replicas, so that it is the same one in every layout. A step of three
questions, two mini-batches, two replicas::

    q1: 4 rows   q2: 4 rows   q3: 6 rows  ──shuffle──▶  [q2 q1]  [q3]  ──balance──▶  [q2 | q1]  [q3 | q3]

A replica computes the beginning its rows share once, so a question is split over replicas only where that is faster.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nemo_axpo.data.balancing import balance_chains, imbalance_of_loads, run_cost
from nemo_axpo.data.packing_order import packing_order
from nemo_axpo.data.row_cost import RowCostModel
from nemo_axpo.types import TrainingSample


@dataclass(frozen=True)
class RowInfo:
    """All that other ranks know of a row. Example: ``RowInfo("q7/3", "q7", 41, True, cost=380.0, shared=120.0)``."""

    rollout_id: str
    question_id: str
    num_loss_tokens: int
    has_advantage: bool
    """Whether some advantage is not 0; without a KL term a row without advantage has no gradient."""
    cost: float
    """Of computing the row alone, in the unit of the cost model."""
    shared: float = 0.0
    """Part of ``cost`` that is paid already where the row told of before it, of the same question, is computed too."""


@dataclass(frozen=True)
class PlannedMinibatch:
    """One optimizer step of the whole job."""

    replica_of: dict[str, int]
    """Rollout id of every row that is computed → its replica; in training order."""
    num_dropped_tokens: int
    """Trained tokens of the rows left out because they have no gradient; they count in the loss's normalizer."""
    imbalance: float
    """Cost of the costliest replica ÷ mean cost of a replica - 1."""

    def rows_of(self, replica: int) -> list[str]:
        """Rollout ids of one replica."""
        return [rollout_id for rollout_id, owner in self.replica_of.items() if owner == replica]


def row_infos(samples: Sequence[TrainingSample], *, cost: RowCostModel) -> list[RowInfo]:
    """What is told of ``samples``: question by question, the rows of a question in packing order."""
    by_question: dict[str, list[TrainingSample]] = {}
    for sample in samples:
        by_question.setdefault(sample.question_id, []).append(sample)
    return [row for question in by_question.values() for row in _question_infos(question, cost=cost)]


def _question_infos(samples: Sequence[TrainingSample], *, cost: RowCostModel) -> list[RowInfo]:
    rows = []
    for place in packing_order(samples, image_token_id=cost.image_token_id):
        sample = samples[place.index]
        has_advantage, num_loss_tokens = any(sample.advantages), sum(sample.loss_mask)
        shared = cost.of_beginning(sample.token_ids[: place.num_shared])
        rows.append(
            RowInfo(sample.rollout_id, sample.question_id, num_loss_tokens, has_advantage, cost.of_row(sample), shared)
        )
    return rows


def plan_minibatches(
    rows: Sequence[RowInfo], *, num_minibatches: int, num_replicas: int, seed: int, drops_without_advantage: bool
) -> list[PlannedMinibatch]:
    """Cuts the step's rows by question, in an order drawn from ``seed``, and spreads every part over the replicas.

    ``drops_without_advantage``: leave out rows without a gradient, but count their tokens. The result depends on the
    rows alone and not on their order, up to the order within a question.
    """
    by_question: dict[str, list[RowInfo]] = {}
    for row in rows:
        by_question.setdefault(row.question_id, []).append(row)
    questions = sorted(by_question)
    random.Random(seed).shuffle(questions)
    planned = []
    for start in range(num_minibatches):
        part = [row for question in questions[start::num_minibatches] for row in by_question[question]]
        kept = select_rows(part, keeps=lambda row: row.has_advantage or not drops_without_advantage)
        num_dropped = sum(row.num_loss_tokens for row in part) - sum(row.num_loss_tokens for row in kept)
        replica_of = assign_rows(kept, num_replicas=num_replicas)
        loads = replica_loads(kept, replica_of=replica_of, num_replicas=num_replicas)
        planned.append(PlannedMinibatch(replica_of, num_dropped, imbalance_of_loads(loads)))
    return planned


def assign_rows(rows: Sequence[RowInfo], *, num_replicas: int) -> dict[str, int]:
    """Rollout id → replica, in the order of ``rows``, so that replicas take equally long."""
    chains = _chains(rows)
    parts = balance_chains(chains, num_parts=num_replicas)
    owner = {chains[c][i].rollout_id: replica for replica, part in enumerate(parts) for c, i in part}
    return {row.rollout_id: owner[row.rollout_id] for row in rows}


def replica_loads(rows: Sequence[RowInfo], *, replica_of: Mapping[str, int], num_replicas: int) -> list[float]:
    """Cost of every replica's rows, what they share counted once."""

    def load(replica: int) -> float:
        own = select_rows(rows, keeps=lambda row: replica_of[row.rollout_id] == replica)
        return sum(run_cost(chain) for chain in _chains(own))

    return [load(replica) for replica in range(num_replicas)]


def select_rows(rows: Sequence[RowInfo], *, keeps: Callable[[RowInfo], bool]) -> list[RowInfo]:
    """The rows that stay; each shares with the last one before it that stays what all rows between them share."""
    kept: list[RowInfo] = []
    shared: dict[str, float] = {}
    for row in rows:
        least = min(shared.get(row.question_id, 0.0), row.shared)
        if keeps(row):
            kept.append(replace(row, shared=least))
            least = float("inf")
        shared[row.question_id] = least
    return kept


def _chains(rows: Sequence[RowInfo]) -> list[list[RowInfo]]:
    by_question: dict[str, list[RowInfo]] = {}
    for row in rows:
        by_question.setdefault(row.question_id, []).append(row)
    return list(by_question.values())
