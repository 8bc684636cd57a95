"""AXPO (arXiv 2605.28774): resample the tool call of questions whose tool-using rollouts are all wrong.

    trigger      a question whose tool-using rollouts exist and are all wrong               (paper §3.2)
    rank         its sources by confidence in the first tool call, least confident first    (paper §3.1)
    budget       floor(r·B·N / K) prefixes a step, every question's best before any second  (paper §3.2)
    credit       Eq. 2 for the K continuations, Eq. 3-4 for the prefix they share

Each stage is a function of its own; a variant of the paper is another class that puts another function in its place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from nemo_axpo.algorithms.base import check_group_size, register_algorithm
from nemo_axpo.algorithms.group_statistics import advantage_of, group_scores, is_correct, normalized_advantages
from nemo_axpo.algorithms.grpo import group_credits
from nemo_axpo.types import Credit, ResamplePlan, ResampleScore, RolloutScore, RowPart


def is_triggered(group: Sequence[RolloutScore]) -> bool:
    """Whether some rollout used a tool and none that did is correct; rollouts without a tool do not matter."""
    tool_using = [score for score in group if score.uses_tool]
    return bool(tool_using) and not any(is_correct(score.reward) for score in tool_using)


def is_settled(group: Sequence[RolloutScore]) -> bool:
    """Whether a question can no longer be triggered, whatever its other rollouts do."""
    return any(score.uses_tool and is_correct(score.reward) for score in group)


def most_candidates(group: Sequence[RolloutScore], *, num_running: int) -> int:
    """How many sources a question may have in the end; ``group``: of its finished rollouts. 0 for a complete one."""
    if num_running == 0 or is_settled(group):
        return 0
    return sum(score.uses_tool for score in group) + num_running


def uncertainty_order(score: RolloutScore) -> tuple[float, str]:
    """Sort key: least confident first, ties by rollout id."""
    assert 0.0 <= score.confidence <= 1.0, f"{score.rollout_id} uses a tool, its confidence is {score.confidence}"
    return score.confidence, score.rollout_id


def rank_candidates(group: Sequence[RolloutScore]) -> list[RolloutScore]:
    """The tool-using rollouts of one triggered question, best prefix first."""
    return sorted((score for score in group if score.uses_tool), key=uncertainty_order)


def select_breadth_first(candidates: Sequence[Sequence[RolloutScore]], *, quota: int) -> tuple[RolloutScore, ...]:
    """At most ``quota`` sources from one ranked list per question: all first choices, then all second ones, and so on.

    Inside a layer the most uncertain come first, so that a short quota goes to them.
    """
    selected: list[RolloutScore] = []
    for layer in itertools.zip_longest(*candidates):
        selected += sorted((score for score in layer if score is not None), key=uncertainty_order)
    return tuple(selected[:quota])


def continuations_by_source(
    resamples: Sequence[ResampleScore], *, plan: ResamplePlan
) -> dict[str, tuple[ResampleScore, ...]]:
    """The continuations that arrived, by source id, sorted; a source whose continuations were all lost is absent."""
    planned = {source.rollout_id for source in plan.sources}
    ordered = sorted(resamples, key=lambda score: (score.source_rollout_id, score.rollout_id))
    ids = [score.rollout_id for score in ordered]
    assert len(ids) == len(set(ids)), "two continuations share a rollout id: a row would be credited twice"
    arrived: dict[str, list[ResampleScore]] = {}
    for score in ordered:
        assert score.source_rollout_id in planned, f"{score.rollout_id} continues a prefix the plan does not have"
        arrived.setdefault(score.source_rollout_id, []).append(score)
    assert all(len(group) <= plan.num_continuations for group in arrived.values()), "more continuations than planned"
    return {source_id: tuple(group) for source_id, group in arrived.items()}


def continuation_credits(continuations: Sequence[ResampleScore]) -> tuple[Credit, ...]:
    """Eq. 2: ``(r_k - mean_K) / std_K`` over the continuations of one prefix alone; the source is not among them."""
    advantages = normalized_advantages([score.reward for score in continuations])
    return tuple(
        Credit(score.rollout_id, RowPart.CONTINUATION, a) for score, a in zip(continuations, advantages, strict=True)
    )


def prefix_credit(
    source: RolloutScore, *, group: Sequence[RolloutScore], continuations: Sequence[ResampleScore]
) -> Credit:
    """Eq. 3-4: the prefix is as good as its best continuation, among the group's other, original rewards.

    ``r_prefix = 1 if any r_k is correct else 0`` takes the source's place in the N rewards and nobody else sees it.
    With r_prefix = 0 this is the source's plain GRPO advantage.
    """
    r_prefix = 1.0 if any(is_correct(score.reward) for score in continuations) else 0.0
    rewards = [r_prefix if score.rollout_id == source.rollout_id else score.reward for score in group]
    return Credit(source.rollout_id, RowPart.PREFIX, advantage_of(r_prefix, rewards=rewards))


def row_credits(group: Sequence[RolloutScore], *, continuations: Mapping[str, Sequence[ResampleScore]]) -> list[Credit]:
    """Credits of the ordinary rollouts of one question: sources with continuations by Eq. 3-4, the rest plain GRPO."""
    return [
        prefix_credit(score, group=group, continuations=continuations[score.rollout_id])
        if score.rollout_id in continuations
        else plain
        for score, plain in zip(group, group_credits(group), strict=True)
    ]


@register_algorithm("axpo")
@dataclass(frozen=True, kw_only=True)
class Axpo:
    """Agent explorative policy optimisation; ValueError for N, K, r that make no sense together."""

    num_questions: int
    """B: questions planned per step."""
    num_rollouts: int
    """N: ordinary rollouts per question (paper: 8)."""
    num_continuations: int
    """K: continuations per selected prefix (paper: 4)."""
    resample_ratio: float
    """r: extra continuations a step, as a share of the planned B·N (paper: 0.25)."""

    def __post_init__(self) -> None:
        check_group_size(num_questions=self.num_questions, num_rollouts=self.num_rollouts)
        self._check_budget()

    def _check_budget(self) -> None:
        if self.num_continuations < 2:
            raise ValueError(
                f"the continuations of a prefix are compared with each other, so K >= 2; got "
                f"K={self.num_continuations}: raise the number of continuations (the paper uses 4)"
            )
        if not (math.isfinite(self.resample_ratio) and self.resample_ratio > 0):
            raise ValueError(
                f"the resample ratio r must be positive and finite; got r={self.resample_ratio}: "
                "set it (the paper uses 0.25) or choose the algorithm grpo, which resamples nothing"
            )
        if self.num_continuations > self.max_continuations:
            raise ValueError(
                f"one prefix must fit the budget, K <= r·B·N; got K={self.num_continuations}, r={self.resample_ratio}, "
                f"B={self.num_questions}, N={self.num_rollouts} (r·B·N={float(self.max_continuations):g}): "
                "raise r or the number of questions, or lower K"
            )

    @property
    def max_continuations(self) -> Fraction:
        """r·B·N on the planned B·N, so that lost rollouts do not shrink it; exact for r as written in decimal."""
        return Fraction(str(self.resample_ratio)) * self.num_questions * self.num_rollouts

    @property
    def quota(self) -> int:
        """Prefixes that may be resampled in one step: floor(r·B·N / K), nothing carried over."""
        return math.floor(self.max_continuations / self.num_continuations)

    def plan(self, scores: Sequence[RolloutScore]) -> ResamplePlan:
        """The prefixes to resample, in the order of their claim on the budget."""
        groups = group_scores(scores).values()
        assert len(groups) <= self.num_questions, f"{len(groups)} questions in a step planned for {self.num_questions}"
        candidates = [rank_candidates(group) for group in groups if is_triggered(group)]
        return ResamplePlan(select_breadth_first(candidates, quota=self.quota), self.num_continuations)

    def certain_plan(
        self, finished: Sequence[RolloutScore], *, num_running: Mapping[str, int], num_unknown: int = 0
    ) -> ResamplePlan:
        """The sources of complete questions that :meth:`plan` selects however the open questions turn out.

        A question's (l + 1)-th choice can be overtaken by l + 1 choices of an open question: by its first l ones, which
        lie in earlier layers, and by its (l + 1)-th where that is less confident. An open question has at most as many
        as it has tool-using and running rollouts, and none once a tool-using one is right.
        """
        groups = group_scores(finished)
        complete = [group for question, group in groups.items() if not num_running.get(question)]
        candidates = [rank_candidates(group) for group in complete if is_triggered(group)]
        most = [most_candidates(groups.get(question, ()), num_running=num) for question, num in num_running.items()]
        most += [self.num_rollouts] * num_unknown
        layer_of = {score.rollout_id: layer for ranked in candidates for layer, score in enumerate(ranked)}
        order = select_breadth_first(candidates, quota=len(layer_of))
        certain = [
            source
            for position, source in enumerate(order)
            if position + sum(min(layer_of[source.rollout_id] + 1, number) for number in most) < self.quota
        ]
        return ResamplePlan(tuple(certain), self.num_continuations)

    def credit(
        self, scores: Sequence[RolloutScore], plan: ResamplePlan, resamples: Sequence[ResampleScore]
    ) -> tuple[Credit, ...]:
        """One credit per ordinary rollout and per continuation that arrived, sorted by rollout id.

        A selected source of which every continuation was lost counts as not selected: nothing was learned of its
        prefix, so its row keeps the plain GRPO credit.
        """
        continuations = continuations_by_source(resamples, plan=plan)
        groups = group_scores(scores).values()
        credits = [credit for group in groups for credit in row_credits(group, continuations=continuations)]
        credits += [credit for arrived in continuations.values() for credit in continuation_credits(arrived)]
        return tuple(sorted(credits, key=lambda credit: credit.rollout_id))
