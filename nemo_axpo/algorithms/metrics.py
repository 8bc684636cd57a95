"""Rates of one step: tool use, accuracy by subgroup, all-wrong rate before and after resampling, recovery.

A rate whose denominator is empty is None (no tool call at all leaves no all-wrong rate), never 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemo_axpo.algorithms.axpo import is_triggered
from nemo_axpo.algorithms.group_statistics import group_scores, is_correct
from nemo_axpo.types import ResampleScore, RolloutScore


@dataclass(frozen=True, kw_only=True)
class RolloutMetrics:
    """Shares in [0, 1] over the ordinary rollouts of a step; continuations count in the last three rates only."""

    accuracy: float | None
    """Correct rollouts ÷ rollouts."""
    tool_use: float | None
    """Rollouts with at least one tool call ÷ rollouts."""
    tool_accuracy: float | None
    """Correct ÷ all tool-using rollouts."""
    direct_accuracy: float | None
    """Correct ÷ all rollouts without a tool call."""
    all_wrong: float | None
    """All-wrong tool-using subgroups ÷ questions with at least one tool call."""
    all_wrong_after: float | None
    """The same after resampling: a recovered subgroup no longer counts."""
    recovery: float | None
    """Recovered ÷ resampled subgroups."""
    num_rollouts: int
    num_resamples: int


def share(flags: Iterable[bool]) -> float | None:
    """Fraction of true flags; None without flags."""
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None


def subgroup_outcomes(
    scores: Sequence[RolloutScore], *, resamples: Sequence[ResampleScore]
) -> tuple[set[str], set[str], set[str]]:
    """Question ids of all-wrong subgroups, of resampled ones, and of those with a correct continuation."""
    question_of = {score.rollout_id: score.question_id for score in scores}
    all_wrong = {question_id for question_id, group in group_scores(scores).items() if is_triggered(group)}
    resampled = {question_of[resample.source_rollout_id] for resample in resamples}
    recovered = {question_of[resample.source_rollout_id] for resample in resamples if is_correct(resample.reward)}
    return all_wrong, resampled, recovered


def rollout_metrics(scores: Sequence[RolloutScore], *, resamples: Sequence[ResampleScore] = ()) -> RolloutMetrics:
    """Metrics of one step (or of one evaluation, without resamples); the order of the scores does not matter."""
    all_wrong, resampled, recovered = subgroup_outcomes(scores, resamples=resamples)
    tool_questions = {score.question_id for score in scores if score.uses_tool}
    return RolloutMetrics(
        accuracy=share(is_correct(score.reward) for score in scores),
        tool_use=share(score.uses_tool for score in scores),
        tool_accuracy=share(is_correct(score.reward) for score in scores if score.uses_tool),
        direct_accuracy=share(is_correct(score.reward) for score in scores if not score.uses_tool),
        all_wrong=share(question in all_wrong for question in tool_questions),
        all_wrong_after=share(question in all_wrong - recovered for question in tool_questions),
        recovery=share(question in recovered for question in resampled),
        num_rollouts=len(scores),
        num_resamples=len(resamples),
    )
