"""Group-relative statistics: mean, sample standard deviation and normalised advantages of one group of rewards.

``math.fsum`` rounds once, after the exact sum: the statistics are the same to the last bit whatever the order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nemo_axpo.types import RolloutScore

STD_EPSILON = 1e-6
"""Added to the standard deviation, as verl does."""


def group_scores(scores: Iterable[RolloutScore]) -> dict[str, tuple[RolloutScore, ...]]:
    """Scores by question id; questions and the rollouts of each are sorted by id."""
    ordered = sorted(scores, key=lambda score: (score.question_id, score.rollout_id))
    ids = [score.rollout_id for score in ordered]
    assert len(ids) == len(set(ids)), "two scores share a rollout id: a row would be credited twice"
    groups: dict[str, list[RolloutScore]] = {}
    for score in ordered:
        groups.setdefault(score.question_id, []).append(score)
    return {question_id: tuple(group) for question_id, group in groups.items()}


def is_correct(reward: float) -> bool:
    """Whether a reward counts as solved, in the trigger, in r_prefix and in every rate."""
    return reward > 0


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, independent of the order; the group must not be empty."""
    return math.fsum(values) / len(values)


def sample_std(values: Sequence[float]) -> float:
    """Standard deviation with ddof = 1; exactly 0 for a group of equal values or of one."""
    if min(values) == max(values):
        return 0.0
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def advantage_of(reward: float, *, rewards: Sequence[float]) -> float:
    """``(reward - mean(rewards)) / (std(rewards) + 1e-6)``; 0 where the group carries no contrast (std = 0)."""
    std = sample_std(rewards)
    return 0.0 if std == 0.0 else (reward - mean(rewards)) / (std + STD_EPSILON)


def normalized_advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    """Advantage of every reward inside its group, in the given order (GRPO; Eq. 2 with the K continuations)."""
    return tuple(advantage_of(reward, rewards=rewards) for reward in rewards)
