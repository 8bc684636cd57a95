"""The main loop and NeMo-Aligner's actor on the same rollouts: equal advantages, masks and losses, step by step."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from tiny_runs import AXPO, RUN

from nemo_axpo import assembly
from nemo_axpo.aligner.actor_model import MegatronQwen3VLAXPOActorModel
from nemo_axpo.aligner.data import QuestionIndices, collate_questions
from nemo_axpo.aligner.optimizer import PolicyOptimizer, WarmupScheduler
from nemo_axpo.aligner.rows import unpack_samples
from nemo_axpo.config.load import load_config
from nemo_axpo.loop import minibatch_metrics
from nemo_axpo.training_parts import TrainingParts, build_training_parts
from nemo_axpo.types import TrainingSample

NUM_QUESTIONS = 4


@pytest.fixture(scope="module")
def config(checkpoint):
    return load_config([*RUN, *AXPO, "loss.kl_coef=0.1"], settings={"model.path": str(checkpoint)})


def fresh_parts(config) -> TrainingParts:
    return build_training_parts(config, replicas=assembly.build_replicas(config))


@pytest.fixture(scope="module")
def ours(config):
    """The main loop's first step: experience, samples, metrics, weights after it."""
    parts = fresh_parts(config)
    parts.loop.sync()
    experience = asyncio.run(parts.loop.explore(0))
    _, samples = parts.loop.give_credit(experience)
    metrics = parts.loop.update(samples, index=0)
    weights = {name: tensor.detach().clone() for name, tensor in parts.actor.hf_tensors()}
    return experience, samples, metrics, weights


@pytest.fixture(scope="module")
def theirs(config):
    """The same step through the actor that NeMo-Aligner's trainer calls, in its order."""
    model = MegatronQwen3VLAXPOActorModel(fresh_parts(config))
    optimizer = PolicyOptimizer(model)
    scheduler = WarmupScheduler(optimizer, rate=model.loop.learning_rate)
    model.prepare_for_inference()
    questions = QuestionIndices(NUM_QUESTIONS)
    batches = [model.infer(collate_questions([questions[i], questions[i + 1]])) for i in (0, 2)]
    scores, plan = model.loop.plan(model.rollouts)
    batches.append(model.infer_continuations(plan))
    experience = model.experience(model.continuations, scores=scores, plan=plan)
    data, measured = model.pack_experience(experience, index=0, multiple_of=5)
    assert measured == {"batch/imbalance": 0.0}, "one process has nobody to send to"
    model.finish_inference()
    samples = unpack_samples(data, table=model.rows)
    model.prepare_for_training()
    metrics = []
    for batch in model.minibatches(iter([data])):
        optimizer.zero_grad()
        model.prepare_for_training_step()
        loss, measured = model.get_loss_and_metrics(batch, forward_only=False)
        assert loss == measured["update/loss"]
        model.finish_training_step()
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        metrics.append({**measured, "update/lr": lr, "update/grad_norm": optimizer.grad_norm})
    model.finish_training()
    weights = {name: tensor.detach().clone() for name, tensor in model.actor.hf_tensors()}
    forward = model.get_loss_and_metrics(batch, forward_only=True)
    model.close()
    return experience, samples, metrics, weights, batches, forward, model


def test_both_sample_the_same_step_and_resample_in_it(ours, theirs):
    assert theirs[0].scores == ours[0].scores and theirs[0].plan == ours[0].plan
    assert theirs[0].resamples == ours[0].resamples and ours[0].resamples, "the step must resample something"


def test_every_row_has_the_same_mask_and_advantages(ours, theirs):
    """Bit for bit; only the engine's log-probs may round otherwise, as other rows ran beside them."""
    mine, others = ({row.rollout_id: row for row in rows} for rows in (ours[1], theirs[1]))
    assert others.keys() == mine.keys() and any(any(row.advantages) for row in ours[1])
    for name, row in mine.items():
        assert others[name].engine_logprobs == pytest.approx(row.engine_logprobs, abs=1e-5)
        assert replace(others[name], engine_logprobs=row.engine_logprobs) == row


def test_the_losses_and_the_weights_after_the_step_are_equal(ours, theirs):
    combined = minibatch_metrics(theirs[2])
    for name in ("update/loss", "update/grad_norm", "update/lr", "update/num_samples", "update/num_loss_tokens"):
        assert combined[name] == pytest.approx(ours[2][name], rel=1e-6, abs=1e-9), name
    for name, tensor in ours[3].items():
        torch.testing.assert_close(theirs[3][name], tensor, rtol=1e-5, atol=1e-7)


def test_a_forward_pass_alone_leaves_no_gradient(theirs):
    loss, metrics = theirs[5]
    assert loss == metrics["update/loss"] and metrics["update/num_samples"] > 0


def test_rows_say_their_question_and_the_row_they_continue(ours, theirs):
    *rollouts, continuations = theirs[4]
    assert torch.cat([batch["question"] for batch in rollouts]).tolist() == [n // 4 for n in range(4 * NUM_QUESTIONS)]
    assert all((batch["source"] == -1).all() for batch in rollouts)
    rows = torch.cat([batch["row"] for batch in rollouts])
    sources = {score.rollout_id: n for n, score in enumerate(ours[0].scores)}
    planned = [sources[row.source_rollout_id] for row in ours[0].resamples]
    assert [rows.tolist().index(source) for source in continuations["source"].tolist()] == planned
    assert (continuations["prefix_lengths"] > continuations["prompt_lengths"]).all()
    assert (continuations["response_lengths"] > continuations["prefix_lengths"]).all()


def test_log_probs_of_rows_come_from_the_policy_and_its_reference(theirs):
    """After a step the two differ; rows of plain text need no batch, rows with images do."""
    model = theirs[6]
    tokens = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
    policy, reference = model.get_inference_log_probs(tokens), model.get_init_policy_logprobs(tokens)
    assert policy.shape == reference.shape == (2, 3) and policy.dtype is torch.float32
    assert (policy < 0).all() and not torch.equal(policy, reference)
    row = TrainingSample("a", "a", (11, 12, 13, 14), (False, True, True, True), (0.0,) * 4, (0.0,) * 4)
    torch.testing.assert_close(policy[0], model.actor.logprobs([row])[0][1:])
    image = model.actor.hf_config.image_token_id
    with pytest.raises(ValueError, match="rows that show images need the batch they are from"):
        model.get_inference_log_probs(torch.tensor([[11, image, 13]]))
