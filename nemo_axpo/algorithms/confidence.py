"""Confidence of a rollout in its first tool call, and the scores the algorithms see.

Taken from the engine's log-probs of the rollout itself: no extra forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from nemo_axpo.algorithms.group_statistics import mean
from nemo_axpo.types import ResampleScore, Rollout, RolloutScore, RolloutStatus


def confidence_of(rollout: Rollout) -> float:
    """Arithmetic mean of ``exp(logprob)`` over the first call's tokens, after ``<tool_call>`` through ``</tool_call>``.

    NaN without a tool call. 1 where the tokens ran out right after ``<tool_call>``: nothing of the call was sampled,
    nothing can be resampled within the same limit either, so such a source ranks last.
    """
    if not rollout.uses_tool:
        return math.nan
    turn = rollout.turns[0]
    assert turn.tool_call is not None, f"{rollout.rollout_id}: a turn without a call ends a rollout, so turn 1 has one"
    logprobs = turn.completion.logprobs[turn.tool_call.start : turn.tool_call.stop]
    # Summing exp() may pass 1 by a rounding step; a probability does not.
    return min(1.0, mean([math.exp(logprob) for logprob in logprobs])) if logprobs else 1.0


def rollout_scores(rollouts: Iterable[Rollout]) -> tuple[RolloutScore, ...]:
    """Scores of the ordinary rollouts; those lost to infrastructure are left out, never counted as wrong."""
    return tuple(
        RolloutScore(
            rollout.question_id,
            rollout.rollout_id,
            reward=rollout.reward,
            uses_tool=rollout.uses_tool,
            confidence=confidence_of(rollout),
        )
        for rollout in rollouts
        if rollout.status is not RolloutStatus.LOST
    )


def resample_scores(continuations: Iterable[Rollout]) -> tuple[ResampleScore, ...]:
    """Scores of the continuations; those lost to infrastructure are left out."""
    scores = []
    for continuation in continuations:
        assert continuation.prefix is not None, f"{continuation.rollout_id} is an ordinary rollout, not a continuation"
        if continuation.status is not RolloutStatus.LOST:
            source = continuation.prefix.source_rollout_id
            scores.append(ResampleScore(source, continuation.rollout_id, continuation.reward))
    return tuple(scores)
