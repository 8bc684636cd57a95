"""Continuations that start early are the continuations of the barrier; only the waiting is shorter."""

from __future__ import annotations

import asyncio
import random

import pytest
from scripted_agent import (
    ScriptedEngine,
    image_store,
    make_agent,
    make_producer,
    make_question,
    random_policy,
    rollout_of,
)

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.confidence import rollout_scores
from nemo_axpo.algorithms.grpo import Grpo
from nemo_axpo.data.samples import cut_prefix
from nemo_axpo.engines.base import EngineError
from nemo_axpo.rollouts.eager import EagerResampling

QUESTIONS = tuple(f"q{number}" for number in range(6))


class SlowEngine(ScriptedEngine):
    """Every request takes a time of its own, drawn from ``latency_seed``."""

    def __init__(self, script, *, latency_seed):
        super().__init__(script)
        self._latencies = random.Random(latency_seed)

    async def generate(self, request):
        for _ in range(self._latencies.randrange(1, 40)):
            await asyncio.sleep(0)
        return await super().generate(request)


def axpo(**settings):
    return Axpo(**{"num_questions": 6, "num_rollouts": 4, "num_continuations": 2, "resample_ratio": 0.5} | settings)


def content(rollouts):
    return [(r.rollout_id, r.token_ids, r.logprobs, r.status, r.reward) for r in rollouts]


async def barrier(engine, algorithm):
    """All rollouts, then the plan, then all continuations."""
    store = image_store()
    producer = make_producer(make_agent(engine, store))
    questions = [make_question(store, question_id) for question_id in QUESTIONS]
    rollouts = await producer.run_rollouts(questions, num_rollouts=algorithm.num_rollouts, seed=3)
    plan = algorithm.plan(rollout_scores(rollouts))
    by_id = {rollout.rollout_id: rollout for rollout in rollouts}
    prefixes = [cut_prefix(by_id[source.rollout_id], confidence=source.confidence) for source in plan.sources]
    continuations = await producer.resample(
        prefixes, questions=questions, num_continuations=plan.num_continuations, seed=3
    )
    return rollouts, continuations


async def eager(engine, algorithm, *, num_elsewhere=0):
    """The rollouts and continuations, and how many sources were started before the last rollout was done."""
    store = image_store()
    producer = make_producer(make_agent(engine, store), max_retries=0)
    questions = [make_question(store, question_id) for question_id in QUESTIONS]
    sampling = EagerResampling(
        producer, questions, algorithm=algorithm, num_elsewhere=num_elsewhere, seed=3
    )
    rollouts = await sampling.roll_out()
    requests = [rollout_of(request) for request in engine.requests]
    num_early = len({request.rpartition("/k")[0] for request in requests if "/k" in request})
    continuations = await sampling.continue_sources(algorithm.plan(rollout_scores(rollouts)))
    return rollouts, continuations, num_early


@pytest.mark.parametrize("latency_seed", range(6))
@pytest.mark.parametrize("ratio", [0.25, 0.5, 2.0])
def test_the_rows_are_those_of_the_barrier(latency_seed, ratio):
    algorithm = axpo(resample_ratio=ratio)
    rollouts, continuations = asyncio.run(barrier(ScriptedEngine(random_policy), algorithm))
    slow = SlowEngine(random_policy, latency_seed=latency_seed)
    early_rollouts, early_continuations, _ = asyncio.run(eager(slow, algorithm))
    assert content(early_rollouts) == content(rollouts)
    assert content(early_continuations) == content(continuations) and continuations


def test_sources_start_before_the_last_rollout_is_done():
    started = [
        asyncio.run(eager(SlowEngine(random_policy, latency_seed=seed), axpo(resample_ratio=2.0)))[2]
        for seed in range(6)
    ]
    assert max(started) >= 2


def test_what_happens_elsewhere_is_unknown():
    """With as many questions on other replicas as the budget has prefixes, no place is certain before the plan."""
    algorithm = axpo(num_questions=12, resample_ratio=0.25)
    assert algorithm.quota == 6
    slow = SlowEngine(random_policy, latency_seed=0)
    _, continuations, num_early = asyncio.run(eager(slow, algorithm, num_elsewhere=6))
    assert num_early == 0 and continuations


def test_grpo_continues_nothing():
    algorithm = Grpo(num_questions=6, num_rollouts=4)
    rollouts, continuations, num_early = asyncio.run(eager(ScriptedEngine(random_policy), algorithm))
    assert len(rollouts) == 24 and continuations == () and num_early == 0


def test_a_source_whose_continuations_are_all_lost_does_not_end_the_step():
    lost = []

    def fails_on_one_source(request):
        source, is_continuation, _ = rollout_of(request).partition("/k")
        if is_continuation and (not lost or source in lost):
            lost.append(source)
            return EngineError("down")
        return random_policy(request)

    _, continuations, _ = asyncio.run(eager(ScriptedEngine(fails_on_one_source), axpo(resample_ratio=2.0)))
    assert continuations and not [row for row in continuations if row.rollout_id.startswith(f"{lost[0]}/k")]


def test_losing_every_continuation_of_a_replica_does_not_end_the_step():
    """Another replica may have some; the loop judges when it knows them all."""

    def only_rollouts(request):
        return EngineError("down") if "/k" in rollout_of(request) else random_policy(request)

    rollouts, continuations, _ = asyncio.run(eager(ScriptedEngine(only_rollouts), axpo()))
    assert rollouts and continuations == ()


def test_a_failing_rollout_stops_continuations_that_have_started():
    async def fails_late():
        engine = SlowEngine(random_policy, latency_seed=1)
        store = image_store()
        producer = make_producer(make_agent(engine, store))
        questions = [make_question(store, question_id) for question_id in QUESTIONS]
        sampling = EagerResampling(
            producer, questions, algorithm=axpo(resample_ratio=2.0), num_elsewhere=0, seed=3
        )
        original, endless, started = engine.generate, asyncio.Event(), asyncio.Event()

        async def generate(request):
            if "/k" in rollout_of(request):
                started.set()
                await endless.wait()
            if rollout_of(request) == "q5/3":
                await asyncio.wait_for(started.wait(), 30.0)
                raise RuntimeError("a bug")
            return await original(request)

        engine.generate = generate
        with pytest.raises(RuntimeError, match="a bug"):
            await sampling.roll_out()
        assert sampling.num_started > 0
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        return (await asyncio.wait(rest, timeout=10.0))[1] if rest else set()

    assert asyncio.run(fails_late()) == set()
