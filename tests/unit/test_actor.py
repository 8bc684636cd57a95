"""The actor: one update against transformers + AdamW, micro-batch invariance, reference, state, supervised training."""

from __future__ import annotations

import math
import shutil
import weakref
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples, sample, save_checkpoint, trained_logprobs

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.errors import CheckpointError
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.losses.supervised_loss import SupervisedLoss
from nemo_axpo.models.qwen3_vl.hf_mapping import global_parameters
from nemo_axpo.models.qwen3_vl.inputs import PackedInputs
from nemo_axpo.types import TrainBatch

# A large eps: where a gradient is zero but for rounding, Adam would otherwise step by its sign.
SETTINGS = AdamSettings(lr=1e-2, betas=(0.9, 0.98), eps=1e-2, weight_decay=0.1, clip_grad=1.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path, tied=True)
    return path


def build(checkpoint, **arguments) -> Actor:
    arguments = {"optimizer": SETTINGS, **arguments}
    return Actor(checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, **arguments)


def batch_of(samples) -> TrainBatch:
    return TrainBatch(tuple(samples), num_planned_rollouts=len(samples))


def gradients(actor: Actor) -> dict[str, torch.Tensor]:
    return {name: parameter.main_grad.clone() for name, parameter in global_parameters(actor._model).items()}


def weights(actor: Actor) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in actor.hf_tensors()}


def of_the_update(metrics: dict[str, float]) -> dict[str, float]:
    """Without what describes the micro-batches themselves."""
    return {name: value for name, value in metrics.items() if not name.startswith("batch/")}


@pytest.mark.parametrize("micro_batch_tokens", [1, 60], ids=["row by row", "three micro-batches"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_gradient_does_not_depend_on_micro_batches(checkpoint, micro_batch_tokens, aggregation):
    loss = PolicyLoss(aggregation=aggregation)
    whole, cut = build(checkpoint), build(checkpoint, micro_batch_tokens=micro_batch_tokens)
    batch = batch_of(mixed_samples())
    old = [row + 0.2 for row in whole.logprobs(batch.samples)]
    expected, got = (actor.update(batch, loss=loss, old_logprobs=old) for actor in (whole, cut))
    theirs = gradients(whole)
    for name, gradient in gradients(cut).items():
        assert (gradient - theirs[name]).norm() <= 1e-5 * theirs[name].norm() + 1e-8, name
    assert of_the_update(got) == pytest.approx(of_the_update(expected), rel=1e-4, abs=1e-6)


def test_gradient_does_not_depend_on_the_form_of_packing(checkpoint):
    padded, thd = (build(checkpoint, packing=form, micro_batch_tokens=50) for form in ("padded", "thd"))
    batch = batch_of(mixed_samples())
    expected, got = (actor.update(batch, loss=PolicyLoss()) for actor in (padded, thd))
    theirs = gradients(padded)
    for name, gradient in gradients(thd).items():
        assert (gradient - theirs[name]).norm() <= 1e-5 * theirs[name].norm() + 1e-8, name
    assert of_the_update(got) == pytest.approx(of_the_update(expected), rel=1e-4, abs=1e-6)
    assert got["batch/padding"] == 0.0 < expected["batch/padding"] < 1.0
    assert got["batch/sharing"] > 1.0


def test_updates_equal_transformers_with_adamw(checkpoint, tmp_path):
    reference = save_checkpoint(tmp_path, tied=True).train()
    actor, images = build(checkpoint), RandomImages()
    samples = [replace(row, temperature=0.8) for row in mixed_samples()]
    advantages = torch.cat([torch.tensor(s.advantages)[torch.tensor(s.loss_mask)] for s in samples])
    decayed = [p for p in reference.parameters() if p.ndim > 1]
    exempt = [p for p in reference.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-2)
    for _ in range(2):
        metrics = actor.update(batch_of(samples), loss=PolicyLoss(kl_coef=0.0))
        optimizer.zero_grad()
        loss = -(trained_logprobs(reference, samples, images=images) * advantages).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        assert metrics["update/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    theirs = dict(reference.named_parameters())
    for name, tensor in actor.hf_tensors():
        assert (tensor - theirs[name]).abs().max() < 2e-5, name


def test_metrics_are_means_over_trained_tokens(checkpoint):
    actor = build(checkpoint, micro_batch_tokens=40)
    samples = mixed_samples()
    logprobs = actor.logprobs(samples)
    engine = [tuple((row - 0.01 * (number + 1)).tolist()) for number, row in enumerate(logprobs)]
    samples = [replace(row, engine_logprobs=values) for row, values in zip(samples, engine)]
    metrics = actor.update(batch_of(samples), loss=PolicyLoss())
    counts = [sum(row.loss_mask) for row in samples]
    expected = sum(0.01 * (number + 1) * count for number, count in enumerate(counts)) / sum(counts)
    assert metrics["update/num_loss_tokens"] == sum(counts) and metrics["update/num_samples"] == 6
    assert metrics["engine/logprob_diff_mean"] == pytest.approx(expected, rel=1e-3)
    assert metrics["engine/logprob_diff_max"] == pytest.approx(0.06, rel=1e-3)
    assert 0 < metrics["engine/kl"] < 1e-3
    ratios = [math.exp(0.01 * (number + 1)) for number in range(6)]
    mean_ratio = sum(ratio * count for ratio, count in zip(ratios, counts)) / sum(counts)
    assert metrics["engine/ratio_mean"] == pytest.approx(mean_ratio, rel=1e-4)
    assert metrics["engine/ratio_max"] == pytest.approx(math.exp(0.06), rel=1e-4)
    assert 0 < metrics["update/entropy"] < 4.6
    assert metrics["update/ratio_mean"] == pytest.approx(1.0) and metrics["update/lr"] == 1e-2
    assert actor.policy_version == 1


def test_reference_stays_while_the_policy_moves(checkpoint):
    actor = build(checkpoint)
    samples = mixed_samples()
    before = actor.logprobs(samples)
    first = actor.update(batch_of(samples), loss=PolicyLoss(kl_coef=1.0))
    second = actor.update(batch_of(samples), loss=PolicyLoss(kl_coef=1.0))
    assert first["update/kl"] == pytest.approx(0.0, abs=1e-7) and second["update/kl"] > 1e-4
    for row, ours, now in zip(before, actor.reference_logprobs(samples), actor.logprobs(samples), strict=True):
        assert torch.equal(row, ours) and not torch.equal(row, now)


def test_actor_without_a_reference_refuses_kl(checkpoint):
    actor = build(checkpoint, keep_reference=False)
    with pytest.raises(ValueError, match="kl_coef=0"):
        actor.update(batch_of(mixed_samples()), loss=PolicyLoss())
    actor.update(batch_of(mixed_samples()), loss=PolicyLoss(kl_coef=0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trip_gives_the_same_next_step(checkpoint, tmp_path, dtype):
    actor, batch = build(checkpoint, dtype=dtype), batch_of(mixed_samples())
    for lr in (1e-2, 5e-3):
        actor.update(batch, loss=PolicyLoss(), lr=lr)
    CheckpointStore(tmp_path).save(2, tensors=actor.sharded_state(), state=actor.state_values())
    expected = actor.update(batch, loss=PolicyLoss())

    resumed, saved = build(checkpoint, dtype=dtype), CheckpointStore(tmp_path).read()
    resumed.load_state(saved.load_tensors(resumed.sharded_state(is_loading=True)), saved.state)
    assert resumed.policy_version == 2
    assert resumed.update(batch, loss=PolicyLoss()) == expected
    theirs = weights(actor)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(resumed).items())


def test_state_is_named_by_the_whole_model(checkpoint):
    state = build(checkpoint, dtype=torch.bfloat16).sharded_state()
    names = {name.partition(".")[2] for name in state}
    assert {f"{kind}.{name}" for kind in ("policy", "master", "exp_avg", "exp_avg_sq") for name in names} == state.keys()
    assert "decoder.layers.2.self_attention.linear_qkv.weight" in names and "visual.pos_embed.weight" in names
    assert state["policy.decoder.final_layernorm.weight"].dtype is torch.bfloat16
    assert state["master.decoder.final_layernorm.weight"].dtype is torch.float32


def test_state_of_other_weights_is_refused(checkpoint, tmp_path):
    """The reference policy is the directory's weights: a run goes on with the ones it started from."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    actor = build(tmp_path / "copy")
    state, values = actor.sharded_state(), actor.state_values()
    tensors = {name: sharded.data for name, sharded in state.items()}
    build(checkpoint).load_state(tensors, values)
    save_checkpoint(tmp_path / "other", tied=True, seed=1)
    with pytest.raises(CheckpointError, match="the weights it started from, which are its reference policy; got other"):
        build(tmp_path / "other").load_state(tensors, values)


def test_supervised_training_lowers_the_loss(checkpoint):
    actor = build(checkpoint, optimizer=AdamSettings(1e-2), keep_reference=False)
    batch = batch_of(mixed_samples())
    losses = [actor.update(batch, loss=SupervisedLoss()) for _ in range(8)]
    assert losses[-1]["update/loss"] < 0.5 * losses[0]["update/loss"]
    assert losses[0]["update/nll"] == pytest.approx(losses[0]["update/loss"], rel=1e-5)
    assert not any(name.startswith("engine/") for name in losses[0])


def test_bfloat16_stays_near_float32(checkpoint):
    exact, rounded = build(checkpoint), build(checkpoint, dtype=torch.bfloat16)
    samples = mixed_samples()
    for one, other in zip(exact.logprobs(samples), rounded.logprobs(samples), strict=True):
        assert (one - other).abs().max() < 0.15
    first = rounded.update(batch_of(samples), loss=PolicyLoss())
    assert first["update/grad_norm"] == pytest.approx(
        exact.update(batch_of(samples), loss=PolicyLoss())["update/grad_norm"], rel=0.05
    )


def test_batch_without_samples_takes_no_step(checkpoint):
    actor = build(checkpoint)
    before = weights(actor)
    assert actor.update(batch_of([]), loss=PolicyLoss())["update/num_samples"] == 0
    assert actor.logprobs([]) == [] and actor.policy_version == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(actor).items())


@pytest.mark.parametrize("loss", [PolicyLoss(), SupervisedLoss(), PolicyLoss(kl_coef=0.0, aggregation="sequence_mean")])
def test_micro_batch_without_a_trained_token_contributes_nothing(checkpoint, loss):
    samples = mixed_samples()
    untrained = sample(1, 2, "4x4/b", 5, trained=0, name="6", question="q4")
    expected, actor = (build(checkpoint, micro_batch_tokens=1) for _ in range(2))  # a row each
    theirs = expected.update(batch_of(samples), loss=loss)
    ours = actor.update(replace(batch_of([*samples, untrained]), num_planned_rollouts=len(samples)), loss=loss)
    about_rows = ("batch/padding", "batch/sharing")
    assert {n: v for n, v in ours.items() if n not in about_rows} == {
        n: v for n, v in theirs.items() if n not in about_rows
    }
    kept = weights(expected)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(actor).items())


def test_batch_without_a_trained_token_takes_no_step(checkpoint):
    actor = build(checkpoint)
    before = weights(actor)
    assert actor.update(batch_of([sample(1, 2, 3, trained=0)]), loss=PolicyLoss())["update/num_samples"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(actor).items())


@pytest.mark.parametrize("packing", ["padded", "thd"])
def test_one_micro_batch_at_a_time_is_on_the_device(checkpoint, monkeypatch, packing):
    """The device is a copy here: nothing of one is alive when the next arrives, and the numbers are those without copies."""
    batch, arguments = batch_of(mixed_samples()), {"micro_batch_tokens": 1, "packing": packing}
    expected = build(checkpoint, **arguments)
    theirs = [expected.logprobs(batch.samples), expected.update(batch, loss=PolicyLoss()), weights(expected)]
    arrived: list[list[weakref.ref]] = []

    def moved(self: PackedInputs, device: torch.device) -> PackedInputs:
        assert not [part() for parts in arrived for part in parts if part() is not None]
        copy = deepcopy(self)
        pixels = [images.patches_IPD for images in copy.images]
        arrived.append([weakref.ref(part) for part in (copy, copy.positions_3T, *pixels)])
        return copy

    monkeypatch.setattr(PackedInputs, "to", moved)
    actor = build(checkpoint, **arguments)
    ours = [actor.logprobs(batch.samples), actor.update(batch, loss=PolicyLoss()), weights(actor)]
    assert len(arrived) == 3 * len(batch.samples)  # log-probs, reference, update
    assert all(torch.equal(*rows) for rows in zip(ours[0], theirs[0], strict=True)) and ours[1] == theirs[1]
    assert all(torch.equal(tensor, theirs[2][name]) for name, tensor in ours[2].items())


def test_gradient_that_is_not_finite_leaves_the_weights(checkpoint):
    actor = build(checkpoint)
    before = weights(actor)
    bad = sample(1, 2, 3, 4, trained=2, advantage=float("inf"))
    with pytest.raises(FloatingPointError, match="must be finite"):
        actor.update(batch_of([bad]), loss=PolicyLoss(kl_coef=0.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(actor).items())


def test_other_layout_in_one_process_is_refused(checkpoint):
    build(checkpoint)
    with pytest.raises(ValueError, match="one process holds one parallel layout"):
        build(checkpoint, layout=ParallelLayout(tensor_parallel=2))
