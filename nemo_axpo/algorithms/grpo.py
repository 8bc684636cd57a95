"""GRPO: an empty plan, and every model token of a row gets the row's advantage within its group of N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_axpo.algorithms.base import check_group_size, register_algorithm
from nemo_axpo.algorithms.group_statistics import group_scores, normalized_advantages
from nemo_axpo.types import Credit, ResamplePlan, ResampleScore, RolloutScore, RowPart


def group_credits(group: Sequence[RolloutScore]) -> tuple[Credit, ...]:
    """Plain GRPO credits of one question: the whole row, normalised over the group's original rewards."""
    advantages = normalized_advantages([score.reward for score in group])
    return tuple(Credit(score.rollout_id, RowPart.ALL, a) for score, a in zip(group, advantages, strict=True))


@register_algorithm("grpo")
@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Group-relative policy optimisation; ValueError for a B or N that cannot learn."""

    num_questions: int
    """B: questions planned per step."""
    num_rollouts: int
    """N: rollouts per question."""

    def __post_init__(self) -> None:
        check_group_size(num_questions=self.num_questions, num_rollouts=self.num_rollouts)

    def plan(self, scores: Sequence[RolloutScore]) -> ResamplePlan:
        """Nothing is resampled."""
        return ResamplePlan()

    def certain_plan(
        self, finished: Sequence[RolloutScore], *, num_running: Mapping[str, int], num_unknown: int = 0
    ) -> ResamplePlan:
        """Nothing is resampled."""
        return ResamplePlan()

    def credit(
        self, scores: Sequence[RolloutScore], plan: ResamplePlan, resamples: Sequence[ResampleScore]
    ) -> tuple[Credit, ...]:
        """One whole-row credit per rollout, sorted by rollout id."""
        assert not plan.sources and not resamples, "GRPO plans no continuation, so none can arrive"
        credits = [credit for group in group_scores(scores).values() for credit in group_credits(group)]
        return tuple(sorted(credits, key=lambda credit: credit.rollout_id))
