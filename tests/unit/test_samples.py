"""Rows with masks: the table of ALGORITHM §5 on a worked example, and the cut of a thinking prefix."""

from __future__ import annotations

import pytest

from nemo_axpo.data.samples import build_samples, cut_prefix, prefix_length
from nemo_axpo.types import (
    Completion,
    Credit,
    RenderedTokens,
    Rollout,
    RolloutStatus,
    RowPart,
    ToolCall,
    Turn,
)

THINK_END, TOOL_CALL, TOOL_CALL_END, END = 70, 80, 81, 90
PROMPT = RenderedTokens((1, 2, 3), ("image",))
OBSERVATION = RenderedTokens((4, 5), ("crop",))


def completion(*ids: int, version: int = 3) -> Completion:
    return Completion(ids, tuple(-i / 128 for i in ids), "stop", version)


def source() -> Rollout:
    """``1 2 3 | 10 </think> <tool_call> 20 21 </tool_call> end | 4 5 | 30 end``."""
    called = completion(10, THINK_END, TOOL_CALL, 20, 21, TOOL_CALL_END, END)
    turns = (Turn(PROMPT, called, ToolCall(3, 6)), Turn(OBSERVATION, completion(30, END, version=4)))
    return Rollout("q/0", "q", turns, RolloutStatus.ANSWERED)


def continuation(index: int, *body: int) -> Rollout:
    """Shares the source's prefix, samples ``body`` after it, then one observation and an answer."""
    prefix = cut_prefix(source(), confidence=0.4)
    whole = completion(*prefix.completion.token_ids, *body)
    turns = (Turn(PROMPT, whole, ToolCall(3, 3 + len(body))), Turn(OBSERVATION, completion(31, END)))
    return Rollout(f"q/0/k{index}", "q", turns, RolloutStatus.ANSWERED, prefix=prefix)


def direct() -> Rollout:
    return Rollout("q/1", "q", (Turn(PROMPT, completion(11, THINK_END, 40, END)),), RolloutStatus.ANSWERED)


def bits(spaced: str) -> str:
    """A mask written segment by segment."""
    return spaced.replace(" ", "")


def mask_of(rollout: Rollout, part: RowPart, advantage: float = 1.0) -> str:
    (sample,) = build_samples([rollout], [Credit(rollout.rollout_id, part, advantage)], temperature=1.0)
    assert sample.advantages == tuple(advantage if trained else 0.0 for trained in sample.loss_mask)
    return "".join("1" if trained else "0" for trained in sample.loss_mask)


def test_ordinary_rows_train_every_model_token():
    assert mask_of(direct(), RowPart.ALL) == bits("000 1111")
    assert mask_of(source(), RowPart.ALL) == bits("000 1111111 00 11")


def test_selected_source_trains_its_prefix_through_the_tool_call_token():
    assert mask_of(source(), RowPart.PREFIX) == bits("000 1110000 00 00")


def test_continuation_trains_what_follows_the_prefix():
    assert mask_of(continuation(0, 22, TOOL_CALL_END, END), RowPart.CONTINUATION) == bits("000 000111 00 11")


def test_source_and_continuation_cover_every_sampled_token_once():
    body = (22, TOOL_CALL_END, END)
    prefix, rest = mask_of(source(), RowPart.PREFIX), mask_of(continuation(0, *body), RowPart.CONTINUATION)
    shared = prefix_length(source())
    assert [prefix[:shared], rest[:shared], prefix[shared:].count("1")] == ["000111", "000000", 0]


def test_samples_carry_the_row():
    (sample,) = build_samples([source()], [Credit("q/0", RowPart.ALL, -0.5)], temperature=0.7)
    assert sample.token_ids == (1, 2, 3, 10, 70, 80, 20, 21, 81, 90, 4, 5, 30, 90)
    assert sample.image_ids == ("image", "crop")
    assert sample.engine_logprobs == source().logprobs
    assert (sample.policy_version, sample.temperature, sample.question_id) == (3, 0.7, "q")


def test_prefix_is_cut_at_the_parsed_call_not_at_a_look_alike():
    """A ``<tool_call>`` id inside the thinking is text; the call starts where the parser says."""
    thinking = completion(TOOL_CALL, 10, THINK_END, TOOL_CALL, 20, TOOL_CALL_END, END)
    row = Rollout("q/0", "q", (Turn(PROMPT, thinking, ToolCall(4, 6)),), RolloutStatus.TURN_LIMIT)
    prefix = cut_prefix(row, confidence=0.4)
    assert prefix.completion.token_ids == (TOOL_CALL, 10, THINK_END, TOOL_CALL)
    assert mask_of(row, RowPart.PREFIX) == bits("000 1111000")


def test_prefix_keeps_tokens_logprobs_and_version():
    prefix = cut_prefix(source(), confidence=0.4)
    assert prefix.prompt == PROMPT
    assert prefix.completion == Completion((10, 70, 80), (-10 / 128, -70 / 128, -80 / 128), "prefix", 3)
    assert (prefix.source_rollout_id, prefix.question_id, prefix.confidence) == ("q/0", "q", 0.4)
    assert prefix.num_tokens == prefix_length(source()) == 6


def test_lost_rows_and_foreign_credits_are_passed_over():
    lost = Rollout("q/2", "q", (), RolloutStatus.LOST)
    credits = [Credit("q/1", RowPart.ALL, 1.0), Credit("elsewhere/0", RowPart.ALL, 1.0)]
    assert [s.rollout_id for s in build_samples([lost, direct()], credits, temperature=1.0)] == ["q/1"]


def test_rows_without_advantage_stay_and_rows_without_a_trained_token_go():
    empty = continuation(1)
    stopped = Rollout("q/0/k1", "q", empty.turns[:1], RolloutStatus.TOKEN_LIMIT, prefix=empty.prefix)
    credits = [Credit("q/1", RowPart.ALL, 0.0), Credit("q/0/k1", RowPart.CONTINUATION, 0.0)]
    assert [s.rollout_id for s in build_samples([direct(), stopped], credits, temperature=1.0)] == ["q/1"]


@pytest.mark.parametrize("part", [RowPart.ALL, RowPart.PREFIX])
def test_continuations_never_train_the_shared_prefix(part):
    with pytest.raises(AssertionError, match="cannot be credited"):
        mask_of(continuation(0, 22, END), part)


def test_broken_inputs_are_refused():
    with pytest.raises(AssertionError, match="cannot be credited"):
        mask_of(source(), RowPart.CONTINUATION)
    with pytest.raises(AssertionError, match="no tool call in turn 1"):
        mask_of(direct(), RowPart.PREFIX)
    with pytest.raises(AssertionError, match="only ordinary rollouts"):
        cut_prefix(continuation(0, 22, END), confidence=0.4)
    with pytest.raises(AssertionError, match="two credits"):
        build_samples([direct()], [Credit("q/1", RowPart.ALL, 1.0)] * 2, temperature=1.0)
    with pytest.raises(AssertionError, match="without a credit: .'q/1'."):
        build_samples([direct()], [], temperature=1.0)
