"""What a step's rollouts say about the policy, before and after resampling (terms of ALGORITHM §1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_axpo.types import Rollout, RolloutGroup, RolloutStatus


def rollout_metrics(groups: Sequence[RolloutGroup], resamples: Sequence[Rollout] = ()) -> dict[str, float]:
    """Metrics of one step; a rate whose denominator is zero has no value and is left out.

    ``all_wrong``: all-wrong tool-using subgroups ÷ questions with a tool call. ``all_wrong_after``: the same, where a
    subgroup with a correct continuation no longer counts. ``recovery``: recovered ÷ resampled subgroups.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    recovered = {resample.question_id for resample in resamples if resample.reward > 0}
    resampled = {resample.question_id for resample in resamples}
    with_tool = [group for group in groups if group.tool_using]
    metrics = {
        **behaviour_rates(rollouts),
        "all_wrong": mean(group.all_wrong for group in with_tool),
        "all_wrong_after": mean(group.all_wrong and group.question.question_id not in recovered for group in with_tool),
        "recovery": mean(question_id in recovered for question_id in resampled),
        "num_rollouts": float(len(rollouts)),
        "num_resamples": float(len(resamples)),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def behaviour_rates(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Accuracy, tool use, accuracy with and without the tool, tokens and turns per rollout, truncated share."""
    return {
        "accuracy": mean(rollout.reward for rollout in rollouts),
        "tool_use": mean(rollout.uses_tool for rollout in rollouts),
        "tool_accuracy": mean(rollout.reward for rollout in rollouts if rollout.uses_tool),
        "direct_accuracy": mean(rollout.reward for rollout in rollouts if not rollout.uses_tool),
        "tokens": mean(sum(len(turn.completion.token_ids) for turn in rollout.turns) for rollout in rollouts),
        "turns": mean(len(rollout.turns) for rollout in rollouts),
        "truncated": mean(is_truncated(rollout) for rollout in rollouts),
    }


def is_truncated(rollout: Rollout) -> bool:
    """Whether a limit ended the rollout before it answered."""
    return rollout.status in (RolloutStatus.TURN_LIMIT, RolloutStatus.TOKEN_LIMIT, RolloutStatus.TIME_LIMIT)


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    values = [float(value) for value in values]
    return sum(values) / len(values) if values else None
