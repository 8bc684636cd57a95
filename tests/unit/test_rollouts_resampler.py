"""Continuations start from the token ids of a prefix, in the turn already begun, with fresh tools."""

from __future__ import annotations

import asyncio

import pytest
from scripted_agent import (
    ZOOM,
    ScriptedEngine,
    answer,
    image_store,
    make_agent,
    make_producer,
    make_question,
    tokenizer,
    turn_of,
)

from nemo_axpo.algorithms.confidence import confidence_of
from nemo_axpo.data.samples import cut_prefix
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.seeds import turn_seed
from nemo_axpo.types import RolloutStatus

THOUGHT, REST = "let me look\n</think>\n\n<tool_call>", ZOOM.partition("<tool_call>")[2]


def script(request):
    """Sources zoom and answer wrong; continuations finish the call and answer right."""
    if "/k" not in request.request_id:
        return (ZOOM, answer("blue"))[turn_of(request)]
    return (REST, answer("red"))[turn_of(request)]


def resample(script=script, *, num_continuations=2, limits=None):
    """Source ``q7/1`` of two rollouts, and its continuations; returns (source, continuations, engine)."""
    store, engine = image_store(), ScriptedEngine(script)
    producer = make_producer(make_agent(engine, store, limits=limits))
    question = make_question(store)

    async def step():
        rollouts = await producer.run_rollouts([question], num_rollouts=2, seed=11)
        prefix = cut_prefix(rollouts[1], confidence=confidence_of(rollouts[1]))
        engine.requests.clear()
        continuations = await producer.resample(
            [prefix], questions=[question], num_continuations=num_continuations, seed=11
        )
        return rollouts[1], continuations

    source, continuations = asyncio.run(step())
    return source, continuations, engine


def test_the_engine_continues_prompt_and_prefix():
    source, continuations, engine = resample()
    prefix = continuations[0].prefix
    frozen = tuple(tokenizer().encode(THOUGHT, add_special_tokens=False))
    assert prefix.completion.token_ids == frozen
    first = [request for request in engine.requests if turn_of(request) == 0]
    assert [request.request_id for request in first] == ["q7/1/k0/t0", "q7/1/k1/t0"]
    assert all(r.prompt.token_ids == source.turns[0].prompt_delta.token_ids + frozen for r in first)
    assert first[0].prompt is first[1].prompt  # one object: the engine can tell at once that it is shared
    assert first[0].prompt.image_ids == source.turns[0].prompt_delta.image_ids


def test_turn_one_holds_frozen_then_new_tokens_with_the_sources_logprobs_in_front():
    source, continuations, engine = resample()
    row, frozen = continuations[0], continuations[0].prefix.completion
    sampled = engine.complete(REST)
    assert row.turns[0].prompt_delta == source.turns[0].prompt_delta
    assert row.turns[0].completion.token_ids == frozen.token_ids + sampled.token_ids
    num_frozen = len(frozen.token_ids)
    assert row.turns[0].completion.logprobs[:num_frozen] == source.turns[0].completion.logprobs[:num_frozen]
    assert row.turns[0].completion.logprobs[num_frozen:] == sampled.logprobs
    assert row.turns[0].tool_call.start == num_frozen
    assert row.token_ids[: row.prefix.num_tokens] == source.token_ids[: row.prefix.num_tokens]
    assert all(row.model_mask[row.prefix.num_tokens - num_frozen : row.prefix.num_tokens])


def test_ids_rewards_and_statuses():
    source, continuations, _ = resample(num_continuations=3)
    assert [row.rollout_id for row in continuations] == ["q7/1/k0", "q7/1/k1", "q7/1/k2"]
    assert all(row.question_id == "q7" and row.prefix.source_rollout_id == "q7/1" for row in continuations)
    assert source.reward == 0.0 and [row.reward for row in continuations] == [1.0, 1.0, 1.0]
    assert {row.status for row in continuations} == {RolloutStatus.ANSWERED}


def test_tools_are_fresh():
    source, continuations, _ = resample()
    assert source.turns[0].tool_result.text == "image 1:"
    assert [row.turns[0].tool_result.text for row in continuations] == ["image 1:", "image 1:"]


def test_the_turn_already_begun_is_turn_one():
    def zoom_for_ever(request):
        return REST if "/k" in request.request_id and turn_of(request) == 0 else ZOOM

    _, continuations, engine = resample(zoom_for_ever)
    assert {row.status for row in continuations} == {RolloutStatus.TURN_LIMIT}
    assert [len(row.turns) for row in continuations] == [3, 3]
    assert len(engine.requests) == 6


def test_frozen_tokens_count_against_the_turns_bound():
    probe = ScriptedEngine(script)
    whole, frozen = len(probe.complete(ZOOM).token_ids), len(probe.complete(THOUGHT).token_ids)
    _, continuations, engine = resample(limits=RolloutLimits(max_new_tokens=whole, max_row_tokens=1000))
    assert engine.requests[0].sampling.max_new_tokens == whole - frozen
    assert continuations[0].status is RolloutStatus.ANSWERED


def test_a_prefix_that_fills_the_turn_leaves_nothing_to_sample():
    frozen = len(ScriptedEngine(script).complete(THOUGHT).token_ids)
    source, continuations, engine = resample(limits=RolloutLimits(max_new_tokens=frozen, max_row_tokens=1000))
    assert source.status is RolloutStatus.TOKEN_LIMIT and source.uses_tool and confidence_of(source) == 1.0
    assert engine.requests == [] and continuations[0].status is RolloutStatus.TOKEN_LIMIT
    assert continuations[0].token_ids == source.token_ids and continuations[0].uses_tool


@pytest.mark.parametrize("k", [0, 1])
def test_every_branch_has_its_own_seed(k):
    _, _, engine = resample()
    seeds = {request.request_id: request.seed for request in engine.requests}
    for turn in (0, 1):
        expected = turn_seed(11, question_id="q7", rollout=1, branch=k, turn=turn)
        assert seeds[f"q7/1/k{k}/t{turn}"] == expected
    assert len(set(seeds.values())) == 4


def test_later_turns_are_as_in_any_rollout():
    _, continuations, engine = resample()
    row = continuations[1]
    request = next(r for r in engine.requests if r.request_id == "q7/1/k1/t1")
    assert request.prompt.token_ids == row.token_ids[: -len(row.turns[1].completion.token_ids)]
    assert request.prompt.image_ids == row.image_ids and len(row.image_ids) == 2
