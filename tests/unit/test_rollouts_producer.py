"""Many rollouts at once: order, concurrency, lost rollouts, and seeds that do not depend on the neighbours."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from scripted_agent import (
    ZOOM,
    ScriptedEngine,
    answer,
    by_turn,
    image_store,
    make_agent,
    make_producer,
    make_question,
    random_policy,
    rollout_of,
    turn_of,
)

from nemo_axpo.engines.base import EngineError
from nemo_axpo.types import RolloutStatus


def run(engine, questions=("q1", "q2", "q3"), *, num_rollouts=4, seed=1, max_retries=2):
    store = image_store()
    producer = make_producer(make_agent(engine, store), max_retries=max_retries)
    questions = [make_question(store, question_id) for question_id in questions]
    return asyncio.run(producer.run_rollouts(questions, num_rollouts=num_rollouts, seed=seed))


def content(rollouts):
    """What must be equal: everything but the measured latencies."""
    return {r.rollout_id: (r.token_ids, r.logprobs, r.image_ids, r.status, r.answer, r.reward) for r in rollouts}


def test_all_rollouts_run_at_once_and_come_back_in_order():
    engine = ScriptedEngine(random_policy, delay_s=0.01)
    rollouts = run(engine)
    assert engine.max_in_flight == 12
    assert [rollout.rollout_id for rollout in rollouts] == [f"q{q}/{n}" for q in (1, 2, 3) for n in range(4)]


def test_the_same_seed_gives_the_same_rollout_whatever_else_runs():
    together = content(run(ScriptedEngine(random_policy, delay_s=0.001), num_rollouts=6))
    for question_id in ("q1", "q2", "q3"):
        alone = content(run(ScriptedEngine(random_policy), [question_id], num_rollouts=3))
        assert alone.items() <= together.items()
    reordered = run(ScriptedEngine(random_policy), ["q3", "q1", "q2"], num_rollouts=6)
    assert content(reordered) == together
    assert content(run(ScriptedEngine(random_policy), num_rollouts=6, seed=2)) != together


def test_every_request_has_its_own_seed():
    engine = ScriptedEngine(by_turn(ZOOM, ZOOM, answer("red")))
    run(engine)
    assert len({request.seed for request in engine.requests}) == len(engine.requests) == 36


def test_rollouts_of_a_question_share_one_prompt_object():
    engine = ScriptedEngine(by_turn(answer("red")))
    run(engine)
    assert len({id(request.prompt) for request in engine.requests}) == 3


def failing(times_by_rollout, then=random_policy):
    """A policy whose engine fails the first ``times`` requests of some rollouts."""
    failed = Counter()

    def script(request):
        rollout_id = rollout_of(request)
        if failed[rollout_id] < times_by_rollout.get(rollout_id, 0):
            failed[rollout_id] += 1
            return EngineError("connection reset")
        return then(request)

    return script


def test_a_lost_rollout_is_retried_with_its_own_seeds():
    undisturbed = content(run(ScriptedEngine(random_policy)))
    engine = ScriptedEngine(failing({"q1/0": 2, "q3/3": 1}))
    assert content(run(engine)) == undisturbed
    asked = Counter(request.request_id for request in engine.requests)
    assert (asked["q1/0/t0"], asked["q3/3/t0"], asked["q2/0/t0"]) == (3, 2, 1)


def test_a_rollout_lost_in_a_later_turn_starts_anew_with_fresh_tools():
    lost = Counter()

    def script(request):
        if turn_of(request) == 1 and not lost["once"]:
            lost["once"] += 1
            return EngineError("down")
        return by_turn(ZOOM, answer("red"))(request)

    (rollout,) = run(ScriptedEngine(script), ["q1"], num_rollouts=1)
    assert rollout.status is RolloutStatus.ANSWERED and rollout.turns[0].tool_result.text == "image 1:"


def test_a_rollout_that_stays_lost_is_left_out_with_a_warning(caplog):
    rollouts = run(ScriptedEngine(failing({"q2/1": 99})), max_retries=1)
    assert "q2/1" not in {rollout.rollout_id for rollout in rollouts} and len(rollouts) == 11
    assert "rollout q2/1 was lost in 2 attempts and is left out" in caplog.text


def test_a_dead_engine_stops_the_run():
    with pytest.raises(EngineError, match="all 12 rollouts were lost, each in several attempts.*restart"):
        run(ScriptedEngine(lambda request: EngineError("down")))


def test_a_bug_in_one_rollout_stops_all_and_is_raised_plainly():
    engine = ScriptedEngine(failing({}, lambda r: KeyError("bug") if r.request_id == "q2/1/t0" else ZOOM), delay_s=0.01)
    with pytest.raises(KeyError, match="bug"):
        run(engine)
    assert engine.in_flight == 0


def test_question_ids_are_unique():
    with pytest.raises(ValueError, match="question id 'q1' occurs 2 times"):
        run(ScriptedEngine(random_policy), ["q1", "q2", "q1"])


def test_no_questions_no_rollouts():
    assert run(ScriptedEngine(random_policy), []) == ()


def test_retries_are_not_negative():
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        make_producer(make_agent(ScriptedEngine(random_policy), image_store()), max_retries=-1)
