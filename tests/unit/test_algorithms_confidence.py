"""Confidence is the arithmetic mean of the call's token probabilities, nothing else."""

from __future__ import annotations

import math

import pytest

from nemo_axpo.algorithms.confidence import confidence_of, resample_scores, rollout_scores
from nemo_axpo.types import (
    Completion,
    RenderedTokens,
    ResampleScore,
    Rollout,
    RolloutStatus,
    ThinkingPrefix,
    ToolCall,
    Turn,
)

PROMPT = RenderedTokens((1, 2))


def completion(*probabilities: float) -> Completion:
    return Completion(tuple(range(len(probabilities))), tuple(map(math.log, probabilities)), "stop", 0)


def calling(rollout_id: str, thinking: list[float], call: list[float], after: list[float]) -> Rollout:
    """``thinking`` ends with the ``<tool_call>`` token, ``call`` with ``</tool_call>``."""
    tool_call = ToolCall(len(thinking), len(thinking) + len(call))
    first = Turn(PROMPT, completion(*thinking, *call, *after), tool_call)
    answer = Turn(RenderedTokens((9,)), completion(0.001, 0.001))
    return Rollout(rollout_id, "q", (first, answer), RolloutStatus.ANSWERED)


def test_mean_runs_over_the_call_tokens_alone():
    assert confidence_of(calling("q/0", [0.01, 0.02], [0.5, 0.25, 0.75], [0.03])) == pytest.approx(0.5, abs=1e-15)


def test_thinking_tokens_do_not_rank():
    sure_thought, unsure_thought = calling("a", [0.99], [0.2], []), calling("b", [0.01], [0.8], [])
    assert confidence_of(sure_thought) < confidence_of(unsure_thought)


def test_mean_is_arithmetic_not_geometric():
    uneven, even = calling("a", [1.0], [0.9, 0.1], []), calling("b", [1.0], [0.4, 0.4], [])
    assert confidence_of(uneven) == pytest.approx(0.5, abs=1e-15)  # geometric: 0.3, which would rank it first
    assert confidence_of(even) < confidence_of(uneven)


def test_only_the_first_call_counts():
    first = calling("a", [0.9], [0.5], [])
    second = Turn(RenderedTokens((9,)), completion(0.1, 0.1), ToolCall(1, 2))
    assert confidence_of(Rollout("a", "q", (first.turns[0], second), RolloutStatus.TURN_LIMIT)) == 0.5


def test_edges():
    silent = Rollout("a", "q", (Turn(PROMPT, completion(0.5)),), RolloutStatus.ANSWERED)
    assert math.isnan(confidence_of(silent))
    assert confidence_of(calling("a", [0.5], [], [])) == 1.0
    certain = Rollout("a", "q", (Turn(PROMPT, Completion((1, 2), (0.0, 1e-9), "stop", 0), ToolCall(1, 2)),), "answered")
    assert confidence_of(certain) == 1.0
    late = Rollout("a", "q", (silent.turns[0], calling("b", [0.5], [0.5], []).turns[0]), RolloutStatus.ANSWERED)
    with pytest.raises(AssertionError, match="turn 1 has one"):
        confidence_of(late)


def test_literal_text_in_the_thinking_is_not_a_call():
    """Only a parsed ``ToolCall`` counts, whatever the token ids of the completion look like."""
    row = Rollout("q/0", "q", (Turn(PROMPT, completion(0.5, 0.5)),), RolloutStatus.ANSWERED)
    assert [score.uses_tool for score in rollout_scores([row])] == [False]


def test_malformed_call_counts_as_tool_use():
    turn = Turn(PROMPT, completion(0.5, 0.25), ToolCall(1, 2, error="not valid JSON"))
    (score,) = rollout_scores([Rollout("q/0", "q", (turn,), RolloutStatus.TOKEN_LIMIT)])
    assert score.uses_tool and score.confidence == 0.25


def test_lost_rows_have_no_score():
    lost = Rollout("q/1", "q", (), RolloutStatus.LOST)
    assert [score.rollout_id for score in rollout_scores([calling("q/0", [0.5], [0.5], []), lost])] == ["q/0"]
    prefix = ThinkingPrefix("q/0", "q", PROMPT, completion(0.5), 0.5)
    turns = (Turn(PROMPT, completion(0.5)),)
    arrived = Rollout("q/0/k0", "q", turns, RolloutStatus.ANSWERED, reward=1.0, prefix=prefix)
    gone = Rollout("q/0/k1", "q", (), RolloutStatus.LOST, prefix=prefix)
    assert resample_scores([arrived, gone]) == (ResampleScore("q/0", "q/0/k0", 1.0),)
    with pytest.raises(AssertionError, match="not a continuation"):
        resample_scores([calling("q/0", [0.5], [0.5], [])])
