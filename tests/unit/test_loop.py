"""The loop's stages on scripted parts: what is asked, what is trained, in which order, and what is measured."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest
import torch

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.grpo import Grpo
from nemo_axpo.data.row_cost import RowCostModel
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.reports import ServerReport
from nemo_axpo.loop import LoopSettings, TrainingLoop, experience_metrics, minibatch_metrics
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.types import (
    Completion,
    Message,
    Question,
    RenderedTokens,
    Rollout,
    RolloutScore,
    RolloutStatus,
    ToolCall,
    Turn,
)

CALL, CLOSE = 50, 51
"""Token ids of the tool call's brackets."""


class Questions:
    """Question i of the stream is ``q<i>``."""

    def __init__(self, log):
        self.log = log

    def take(self, start, count):
        self.log.append(("take", start, count))
        return tuple(Question(f"q{i}", (Message("user", ()),), "red", "world") for i in range(start, start + count))


class Images:
    def __init__(self, log):
        self.log = log

    def retain(self, image_ids):
        self.log.append(("retain", tuple(image_ids)))


def rollout(rollout_id, *, reward, uses_tool=True, prefix=None, status=RolloutStatus.ANSWERED):
    """Prompt of three tokens; think, call (three tokens), or think, answer. A continuation starts from its prefix."""
    prompt = RenderedTokens((1, 2, 3))
    sampled = (10, CALL, 20, 21, CLOSE) if uses_tool else (10, 30)
    logprobs = tuple(math.log(0.5) for _ in sampled)
    call = ToolCall(2, 5, "zoom") if uses_tool else None
    turn = Turn(prompt, Completion(sampled, logprobs, "stop", 3), call)
    question_id = rollout_id.split("/")[0]
    return Rollout(rollout_id, question_id, (turn,), status, reward=reward, prefix=prefix)


class Producer:
    """Rollouts 0 and 1 of a question use the tool and fail; the rest answers directly, every second one right.

    The first continuation of a prefix is right. Questions in ``mastered`` are answered right by everyone.
    """

    def __init__(self, log, mastered=()):
        self.log, self.mastered = log, mastered

    async def run_rollouts(self, questions, *, num_rollouts, seed, on_finished):
        self.log.append(("rollouts", [q.question_id for q in questions], num_rollouts, seed))
        groups = [tuple(self.one(q.question_id, n) for n in range(num_rollouts)) for q in questions]
        for rollout in (rollout for group in groups for rollout in group):
            on_finished(rollout.question_id, rollout)
        return tuple(rollout for group in groups for rollout in group)

    def one(self, question_id, n):
        if question_id in self.mastered:
            return rollout(f"{question_id}/{n}", reward=1.0, uses_tool=False)
        return rollout(f"{question_id}/{n}", reward=float(n >= 2 and n % 2), uses_tool=n < 2)

    async def continue_prefix(self, prefix, *, question, num_continuations, seed):
        assert prefix.question_id == question.question_id
        self.log.append(("resample", prefix.source_rollout_id, num_continuations, seed))
        return tuple(
            rollout(f"{prefix.source_rollout_id}/k{k}", reward=float(k == 0), prefix=prefix)
            for k in range(num_continuations)
        )


class Actor:
    """Records what it is asked. The log-probs of a row name the row and the policy version that gave them."""

    def __init__(self, log):
        self.log, self.policy_version = log, 7
        self.batches, self.old, self.rates = [], [], []

    def logprobs(self, samples):
        self.log.append(("logprobs", self.policy_version, len(samples)))
        return [(sample.rollout_id, self.policy_version) for sample in samples]

    def update(self, batch, *, loss, lr=None, old_logprobs=None):
        self.log.append(("update", self.policy_version))
        self.batches.append(batch)
        self.old.append(old_logprobs)
        self.rates.append(lr)
        if not batch.samples:
            return {"update/num_samples": 0.0, "update/lr": lr}
        self.policy_version += 1
        return {"update/loss": float(len(batch.samples)), "update/num_samples": float(len(batch.samples))}

    def hf_tensors(self):
        return [("weights of", torch.tensor([self.policy_version]))]


class Engine:
    def __init__(self, log):
        self.log = log

    def load_weights(self, named_tensors, *, policy_version):
        self.policy_version = policy_version
        self.log.append(("sync", [(name, int(tensor)) for name, tensor in named_tensors], policy_version))


def grpo(num_questions=4):
    return Grpo(num_questions=num_questions, num_rollouts=4)


def axpo(num_questions=4):
    return Axpo(num_questions=num_questions, num_rollouts=4, num_continuations=2, resample_ratio=0.25)


def make_loop(algorithm=None, *, kl_coef=1e-3, mastered=(), replicas=None, **settings):
    log = []
    actor = Actor(log)
    algorithm = algorithm or axpo()
    loop = TrainingLoop(
        algorithm=algorithm,
        loss=PolicyLoss(kl_coef=kl_coef),
        actor=actor,
        engine=Engine(log),
        producer=Producer(log, mastered),
        questions=Questions(log),
        image_store=Images(log),
        row_cost=RowCostModel(1, 0, 0, 0, 0, patches_per_token=4, image_token_id=-1),
        settings=LoopSettings(
            **{"seed": 0, "num_questions": algorithm.num_questions, "temperature": 0.8, "lr": 0.1} | settings
        ),
        replicas=replicas or OneProcess(),
    )
    return loop, actor, log


def calls(log, name):
    return [entry for entry in log if entry[0] == name]


def run_step(loop, index=0):
    return asyncio.run(loop.step(index))


# ---------------------------------------------------------------------------------------------------------- the order
def test_a_step_goes_through_the_stages_in_order():
    loop, _, log = make_loop(num_minibatches=2)
    run_step(loop, 5)
    names = [entry[0] for entry in log]
    assert names == ["retain", "take", "rollouts", "resample", "resample", "logprobs", "update", "update", "sync"]


def test_images_of_a_step_stay_until_the_next_one_begins():
    loop, _, log = make_loop()
    run_step(loop, 0)
    run_step(loop, 1)
    assert calls(log, "retain") == [("retain", ()), ("retain", ())]
    assert [entry[0] for entry in log].index("retain") == 0 and log[-1][0] == "sync"


def test_the_engine_gets_the_weights_after_the_last_optimizer_step():
    loop, actor, log = make_loop(num_minibatches=4)
    run_step(loop)
    assert actor.policy_version == 11 and log[-1] == ("sync", [("weights of", 11)], 11)


def test_the_health_of_servers_is_measured_where_an_engine_has_some():
    loop, _, _ = make_loop()
    assert not any(name.startswith("engine/servers") for name in run_step(loop).metrics)
    reports = [ServerReport("http://a:1", True, num_requests=3), ServerReport("http://b:1", False, num_failures=1)]
    loop._engine.take_server_reports = lambda: tuple(reports)
    metrics = run_step(loop).metrics
    assert (metrics["engine/servers"], metrics["engine/servers_up"], metrics["engine/retries"]) == (2, 1, 1)


# ------------------------------------------------------------------------------------------------------------ explore
def test_step_s_asks_the_questions_of_its_index():
    loop, _, log = make_loop()
    for index in (0, 3):
        run_step(loop, index)
    assert calls(log, "take") == [("take", 0, 4), ("take", 12, 4)]
    assert [entry[1] for entry in calls(log, "rollouts")] == [["q0", "q1", "q2", "q3"], ["q12", "q13", "q14", "q15"]]


def test_seeds_depend_on_run_and_step_alone():
    def seeds(seed, *indices):
        loop, _, log = make_loop(seed=seed)
        for index in indices:
            run_step(loop, index)
        per_step = zip(calls(log, "rollouts"), calls(log, "resample")[::2])
        return [(entry[3], resampled[3]) for entry, resampled in per_step]

    in_order, resumed, other = seeds(0, 0, 1, 2), seeds(0, 2), seeds(1, 2)
    assert resumed == in_order[2:] and len(set(in_order)) == 3 and other[0] not in in_order


def test_what_the_algorithm_plans_is_resampled():
    """floor(0.25 · 4 · 4 / 2) = 2 prefixes of four triggered questions, all equally confident: ties by rollout id."""
    loop, _, log = make_loop()
    step = run_step(loop)
    assert [entry[1:3] for entry in calls(log, "resample")] == [("q0/0", 2), ("q1/0", 2)]
    prefixes = {row.prefix.source_rollout_id: row.prefix for row in step.experience.continuations}
    assert list(prefixes) == ["q0/0", "q1/0"]
    assert prefixes["q0/0"].completion.token_ids == (10, CALL) and prefixes["q0/0"].confidence == pytest.approx(0.5)


class SlowPeer(OneProcess):
    """Another replica, whose scores come when a continuation has run here, or after five seconds."""

    has_continued = threading.Event()

    def gather(self, records, *, kind):
        if kind is RolloutScore:
            assert self.has_continued.wait(5.0), "nothing runs here while the other replica samples"
        return super().gather(records, kind=kind)


def test_continuations_on_servers_go_on_while_another_replica_still_samples():
    """Else requests and rollouts run out of time in which nobody listened, and a rollout out of time is wrong."""
    peer = SlowPeer()

    class Continuing(Producer):
        async def continue_prefix(self, prefix, **asked):
            peer.has_continued.set()
            return await super().continue_prefix(prefix, **asked)

    loop, _, log = make_loop(replicas=peer)
    loop._producer, loop._engine.take_server_reports = Continuing(log), lambda: ()
    assert run_step(loop).experience.continuations


def test_grpo_runs_the_same_stages_with_an_empty_plan():
    loop, actor, log = make_loop(grpo())
    step = run_step(loop)
    assert calls(log, "resample") == [] and step.experience.continuations == ()
    assert len(step.samples) == len(actor.batches[0].samples) == 16


def test_lost_rollouts_are_neither_scored_nor_trained():
    loop, _, _ = make_loop(grpo())
    producer = loop._producer
    whole = producer.one
    producer.one = lambda question, n: (
        rollout(f"{question}/{n}", reward=0.0, status=RolloutStatus.LOST) if n == 3 else whole(question, n)
    )
    step = run_step(loop)
    assert len(step.experience.scores) == len(step.samples) == len(step.credits) == 12
    assert all(len(group.rollouts) == 3 for group in step.experience.groups)


# --------------------------------------------------------------------------------------------------------- give credit
def test_a_step_ends_when_every_continuation_of_the_whole_step_was_lost():
    loop, _, _ = make_loop()

    async def all_lost(prefix, **options):
        return ()

    loop._producer.continue_prefix = all_lost
    with pytest.raises(EngineError, match="all 4 rollouts were lost, each in several attempts"):
        run_step(loop)


def test_every_row_becomes_a_sample_with_its_part_and_the_rollouts_temperature():
    loop, _, _ = make_loop()
    step = run_step(loop)
    assert {sample.temperature for sample in step.samples} == {0.8}
    masks = {sample.rollout_id: sample.loss_mask for sample in step.samples}
    no, yes = False, True
    assert masks["q0/0"] == (no, no, no, yes, yes, no, no, no)
    assert masks["q0/0/k0"] == (no, no, no, no, no, yes, yes, yes)
    assert masks["q0/1"] == (no, no, no, yes, yes, yes, yes, yes)
    assert len(masks) == 16 + 4


# -------------------------------------------------------------------------------------------------------------- update
def questions_of(batch):
    return {sample.question_id for sample in batch.samples}


def test_minibatches_share_no_question_and_lose_no_row():
    loop, actor, _ = make_loop(axpo(8), num_minibatches=4)
    step = run_step(loop)
    assert [len(questions_of(batch)) for batch in actor.batches] == [2] * 4
    trained = [sample.rollout_id for batch in actor.batches for sample in batch.samples]
    assert sorted(trained) == sorted(sample.rollout_id for sample in step.samples)
    assert len(set(trained)) == len(trained) == 8 * 4 + 8
    assert [batch.num_planned_rollouts for batch in actor.batches] == [8] * 4
    for batch in actor.batches:
        order = [sample.question_id for sample in batch.samples]
        assert order == sorted(order, key=order.index), "rows that share a prompt lie together"


def test_the_cut_is_drawn_from_seed_and_step():
    def cut(seed, index):
        loop, actor, _ = make_loop(axpo(8), num_minibatches=4, seed=seed)
        samples = make_loop(axpo(8))[0]
        experience = asyncio.run(samples.explore(0))
        loop.update(samples.give_credit(experience)[1], index=index)
        return [frozenset(questions_of(batch)) for batch in actor.batches]

    assert cut(0, 0) == cut(0, 0)
    assert len({tuple(cut(seed, index)) for seed, index in ((0, 0), (0, 1), (1, 0))}) == 3


def test_only_later_minibatches_are_scored_and_before_the_first_step():
    loop, actor, log = make_loop(axpo(8), num_minibatches=4)
    run_step(loop)
    later = sum(len(batch.samples) for batch in actor.batches[1:])
    assert calls(log, "logprobs") == [("logprobs", 7, later)]
    assert actor.old[0] is None
    for batch, old in zip(actor.batches[1:], actor.old[1:]):
        assert old == [(sample.rollout_id, 7) for sample in batch.samples]


def test_one_optimizer_step_needs_no_old_logprobs():
    loop, actor, log = make_loop()
    run_step(loop)
    assert actor.old == [None] and calls(log, "logprobs") == [("logprobs", 7, 0)]


def test_without_kl_rows_without_advantage_are_counted_but_not_computed():
    with_kl, without = (make_loop(kl_coef=kl, mastered=("q1",)) for kl in (1e-3, 0.0))
    for loop, _, _ in (with_kl, without):
        run_step(loop)
    (whole,), (dropped,) = with_kl[1].batches, without[1].batches
    assert "q1" in questions_of(whole) and "q1" not in questions_of(dropped)
    assert dropped.num_other_tokens == 4 * 2
    assert dropped.num_loss_tokens == whole.num_loss_tokens
    assert dropped.num_planned_rollouts == whole.num_planned_rollouts == 16


def test_only_the_rows_that_are_kept_are_scored():
    mastered = tuple(f"q{i}" for i in range(8) if i % 2)
    loop, actor, log = make_loop(axpo(8), num_minibatches=4, kl_coef=0.0, mastered=mastered)
    run_step(loop)
    assert calls(log, "logprobs")[0][2] == sum(len(batch.samples) for batch in actor.batches[1:])
    assert not set(mastered) & {q for batch in actor.batches for q in questions_of(batch)}


def test_a_minibatch_without_gradient_leaves_the_metrics_to_the_others():
    loop, actor, _ = make_loop(axpo(2), num_minibatches=2, kl_coef=0.0, mastered=("q0",))
    metrics = run_step(loop).metrics
    sizes = sorted(len(batch.samples) for batch in actor.batches)
    assert sizes[0] == 0 and metrics["update/loss"] == metrics["update/num_samples"] == sizes[1]


def test_a_step_without_any_gradient_is_still_a_step():
    loop, actor, log = make_loop(grpo(2), kl_coef=0.0, mastered=("q0", "q1"))
    metrics = run_step(loop).metrics
    assert not any(name.startswith("update/") for name in metrics) and metrics["rollout/accuracy"] == 1.0
    assert actor.policy_version == 7 and log[-1][0] == "sync"


# ------------------------------------------------------------------------------------------------------- learning rate
def test_the_learning_rate_rises_over_the_first_optimizer_steps():
    loop, actor, _ = make_loop(warmup_steps=4, num_minibatches=2, lr=0.4)
    for index in range(3):
        run_step(loop, index)
    assert actor.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert make_loop(lr=0.4)[0].learning_rate(0) == 0.4


def test_a_resumed_run_goes_on_with_the_same_rate():
    loop, actor, _ = make_loop(warmup_steps=8, num_minibatches=2, lr=0.4)
    run_step(loop, 2)
    assert actor.rates == pytest.approx([0.4 * 5 / 8, 0.4 * 6 / 8])


# ------------------------------------------------------------------------------------------------------------- metrics
def test_metrics_of_minibatches_are_counts_maxima_and_means():
    first = {"update/num_loss_tokens": 10.0, "engine/logprob_diff_max": 0.5, "update/kl": 0.2, "update/lr": 1.0}
    second = {"update/num_loss_tokens": 30.0, "engine/logprob_diff_max": 0.25, "update/kl": 0.4, "only/here": 3.0}
    assert minibatch_metrics([first, second]) == pytest.approx(
        {
            "update/num_loss_tokens": 40.0,
            "engine/logprob_diff_max": 0.5,
            "update/kl": 0.3,
            "update/lr": 1.0,
            "only/here": 3.0,
        }
    )
    assert minibatch_metrics([]) == {}


def test_metrics_of_what_was_sampled():
    """Four questions: per question two tool rollouts of five tokens (wrong), two direct ones of two (one right).

    Two questions are resampled, twice each: three new tokens, one of two right.
    """
    loop, _, _ = make_loop()
    metrics = experience_metrics(asyncio.run(loop.explore(0)))
    assert metrics["rollout/accuracy"] == metrics["rollout/direct_accuracy"] / 2 == 0.25
    assert metrics["rollout/tool_use"] == 0.5 and metrics["rollout/tool_accuracy"] == 0.0
    assert metrics["rollout/all_wrong"] == 1.0 and metrics["rollout/all_wrong_after"] == 0.5
    assert metrics["rollout/recovery"] == 1.0
    assert metrics["rollout/num_rollouts"] == 16 and metrics["rollout/num_resamples"] == 4
    assert metrics["rollout/tokens"] == 4 * (2 * 5 + 2 * 2) + 4 * 3
    assert metrics["rollout/turns"] == 1.0 and metrics["rollout/truncated"] == 0.0


def test_seconds_of_the_stages_make_up_the_step():
    loop, _, _ = make_loop()
    metrics = run_step(loop).metrics
    laps = [metrics[f"time/{name}"] for name in ("rollout_s", "update_s", "sync_s")]
    assert all(lap >= 0 for lap in laps) and sum(laps) <= metrics["time/step_s"] < sum(laps) + 1
