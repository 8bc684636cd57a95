"""Which rows of a step are trained in which mini-batch, and on which replica: decided from scalars, equally on every rank.

A mini-batch holds whole questions, drawn over all replicas, so that it is the same one in every layout. A step of three
questions, two mini-batches, two replicas::

    q1: 4 rows   q2: 4 rows   q3: 6 rows  ──shuffle──▶  [q2 q1]  [q3]  ──balance──▶  [q2 | q1]  [q3 | q3]
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_axpo.data.balancing import balance
from nemo_axpo.types import TrainingSample

RowCost = Callable[[TrainingSample], float]
"""Relative cost of a forward and backward pass over a row."""


@dataclass(frozen=True)
class RowInfo:
    """All that other ranks know of a row. Example: ``RowInfo("q7/3", "q7", 41, True, 380.0)``."""

    rollout_id: str
    question_id: str
    num_loss_tokens: int
    has_advantage: bool
    """Whether some advantage is not 0; without a KL term a row without advantage has no gradient."""
    cost: float


@dataclass(frozen=True)
class PlannedMinibatch:
    """One optimizer step of the whole job."""

    replica_of: dict[str, int]
    """Rollout id of every row that is computed → its replica; in training order."""
    num_dropped_tokens: int
    """Trained tokens of the rows left out because they have no gradient; they count in the loss's normalizer."""

    def rows_of(self, replica: int) -> list[str]:
        """Rollout ids of one replica."""
        return [rollout_id for rollout_id, owner in self.replica_of.items() if owner == replica]


def row_info(sample: TrainingSample, *, cost: RowCost) -> RowInfo:
    """What is told of ``sample``."""
    return RowInfo(
        sample.rollout_id, sample.question_id, sum(sample.loss_mask), any(sample.advantages), cost(sample)
    )


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
        kept = [row for row in part if row.has_advantage or not drops_without_advantage]
        num_dropped = sum(row.num_loss_tokens for row in part) - sum(row.num_loss_tokens for row in kept)
        planned.append(PlannedMinibatch(assign_rows(kept, num_replicas=num_replicas), num_dropped))
    return planned


def assign_rows(rows: Sequence[RowInfo], *, num_replicas: int) -> dict[str, int]:
    """Rollout id → replica, in the order of ``rows``, so that replicas take equally long."""
    parts = balance([row.cost for row in rows], num_parts=num_replicas)
    owner = {index: replica for replica, part in enumerate(parts) for index in part}
    return {row.rollout_id: owner[index] for index, row in enumerate(rows)}
