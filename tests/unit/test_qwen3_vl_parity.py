"""The Megatron model against transformers in float32: logits, log-probs and the gradient of every parameter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_qwen3_vl import (
    BANNED,
    RandomImages,
    mixed_samples,
    sample,
    save_checkpoint,
    trained_logprobs,
    transformers_logits,
    transformers_logprobs,
)

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.microbatches import build_microbatch
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.actors.packing import VisionTokens
from nemo_axpo.models.qwen3_vl.hf_mapping import global_parameters, placements
from nemo_axpo.models.vocab_parallel import VocabShard, token_logprobs
from nemo_axpo.types import TrainingSample


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def pair(request, tmp_path_factory):
    """transformers' model and an actor of the same weights."""
    path = tmp_path_factory.mktemp("checkpoint")
    images = RandomImages()
    reference = save_checkpoint(path, tied=request.param)
    actor = Actor(path, image_store=images, banned_token_ids=BANNED, optimizer=AdamSettings(1e-3), keep_reference=False)
    return reference, actor, images


def everything_trained(row: TrainingSample) -> TrainingSample:
    return replace(row, loss_mask=(False, *[True] * (len(row.token_ids) - 1)))


def microbatch_of(actor, samples, images):
    vision = VisionTokens(actor.hf_config.image_token_id, actor.hf_config.video_token_id, 2)
    return build_microbatch(
        samples, range(len(samples)), image_store=images, vision=vision, multiple_of=1, device=torch.device("cpu")
    )


def test_logits(pair):
    reference, actor, images = pair
    samples = [everything_trained(row) for row in mixed_samples()]
    microbatch = microbatch_of(actor, samples, images)
    with torch.no_grad():
        logits = actor._model(microbatch.inputs).logits().split([len(samples[i].token_ids) - 1 for i in microbatch.sample_B])
        for number, ours in zip(microbatch.sample_B, logits):
            theirs = transformers_logits(reference, samples[number], images=images)[:-1]
            assert (ours - theirs).abs().max() < 2e-5


@torch.no_grad()
def test_logprobs_of_every_token(pair):
    reference, actor, images = pair
    samples = [replace(everything_trained(row), temperature=0.7) for row in mixed_samples()]
    # Placeholders are banned, so their own log-prob is not a number the two need to agree on.
    for row, ours in zip(samples, actor.logprobs(samples), strict=True):
        theirs = transformers_logprobs(reference, row, images=images)
        is_text = ~torch.tensor(np.isin(row.token_ids, BANNED))
        assert ours[0] == 0
        torch.testing.assert_close(ours[is_text], theirs[is_text], atol=2e-5, rtol=0)


@torch.no_grad()
def test_untrained_positions_are_zero(pair):
    _, actor, _ = pair
    for row, ours in zip(mixed_samples(), actor.logprobs(mixed_samples()), strict=True):
        trained = torch.tensor(row.loss_mask)
        assert (ours[~trained] == 0).all() and (ours[trained] < 0).all()


def test_gradient_of_every_parameter(pair):
    reference, actor, images = pair
    samples = mixed_samples()
    microbatch = microbatch_of(actor, samples, images)
    order = [samples[number] for number in microbatch.sample_B]
    weights = torch.randn(int(microbatch.mask_BS.sum()), generator=torch.Generator().manual_seed(1))

    reference.zero_grad()
    (trained_logprobs(reference, order, images=images) * weights).sum().backward()
    ours, _ = token_logprobs(
        actor._model(microbatch.inputs).logits(),
        targets_L=microbatch.target_L,
        inverse_temperature_L=microbatch.inverse_temperature_L,
        shard=VocabShard.of(96, banned_ids=BANNED),
    )
    parameters = global_parameters(actor._model)
    gradients = dict(zip(parameters, torch.autograd.grad((ours * weights).sum(), list(parameters.values()))))
    theirs = dict(reference.named_parameters())
    compared = 0
    for placement in placements(actor.hf_config):
        whole = gradients[placement.name].reshape(placement.local_shape(size=1))
        for name, gradient in zip(placement.hf_shapes, placement.split(whole), strict=True):
            scale = theirs[name].grad.norm().clamp(min=1e-3)
            assert (gradient - theirs[name].grad).norm() / scale < 1e-5, name
            compared += 1
    assert compared == len(theirs)


@torch.no_grad()
def test_rows_longer_than_the_mask_limit(pair, monkeypatch):
    from nemo_axpo.actors import packing

    _, actor, _ = pair
    shared = list(range(1, 40))
    samples = [sample(*shared, *end, trained=3, name=str(end)) for end in ([50, 51, 52], [53, 54, 55, 56])]
    masked = actor.logprobs(samples)
    monkeypatch.setattr(packing, "_MAX_MASKED_ROW", 8)
    for one, other in zip(masked, actor.logprobs(samples), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
