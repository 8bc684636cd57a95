"""Thinking prefixes and the scalars algorithms rank them by (ALGORITHM §4)."""

from __future__ import annotations

import math

from nemo_axpo.types import Completion, Rollout, RolloutScore, ThinkingPrefix, ToolCall

TRUNCATED_CONFIDENCE = 1.0
"""Confidence of a call that was cut off before its first token: it leaves a continuation no room, so it ranks last."""


def thinking_prefix(rollout: Rollout) -> ThinkingPrefix:
    """The rollout cut after the opening ``<tool_call>`` token of its first call.

    A turn without a call ends a rollout, so the first call stands in turn 1 and the fork precedes every tool.
    """
    call, first = _first_call(rollout), rollout.turns[0]
    frozen = Completion(
        first.completion.token_ids[: call.start],
        first.completion.logprobs[: call.start],
        "prefix",
        first.completion.policy_version,
    )
    return ThinkingPrefix(rollout.rollout_id, rollout.question_id, first.prompt_delta, frozen, confidence_of(rollout))


def confidence_of(rollout: Rollout) -> float:
    """Arithmetic mean of the sampling probabilities of the first call, after ``<tool_call>`` through ``</tool_call>``.

    In [0, 1]; NaN without a tool call; ``TRUNCATED_CONFIDENCE`` where no token follows the opening tag.
    """
    if not rollout.uses_tool:
        return math.nan
    call = _first_call(rollout)
    logprobs = rollout.turns[0].completion.logprobs[call.start : call.stop]
    if not logprobs:
        return TRUNCATED_CONFIDENCE
    return sum(math.exp(logprob) for logprob in logprobs) / len(logprobs)


def score_of(rollout: Rollout) -> RolloutScore:
    """All an algorithm needs to know of an ordinary rollout."""
    return RolloutScore(
        rollout.question_id, rollout.rollout_id, rollout.reward, rollout.uses_tool, confidence_of(rollout)
    )


def _first_call(rollout: Rollout) -> ToolCall:
    call = rollout.turns[0].tool_call
    assert call is not None, f"rollout {rollout.rollout_id} has no tool call in turn 1, so it has no thinking prefix"
    return call
