"""Transformer Engine's layers, in bf16 and FP8, against the local ones on a GPU. Not yet run on a GPU.

    pytest -m gpu tests/gpu

Two layers of the width of Qwen3-VL-2B with random weights. What counts as near is measured in the same run: the distance of
the local bf16 layers from float32 is what bf16 costs; FP8 (e4m3) has 4 significant bits where bf16 has 8, so its products
may be 2^4 times as far off.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples, tiny_config, tiny_model

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.actors.precision import Fp8Settings, LayerSettings
from nemo_axpo.extras import has_extra
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.types import TrainBatch, TrainingSample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_extra("te"), reason="needs Transformer Engine: pip install 'nemo_axpo[te]'"),
]

LOSS = PolicyLoss(kl_coef=0.0)
LOCAL, TE = LayerSettings("local"), LayerSettings("transformer_engine")
RECIPES = {
    "delayed hybrid": Fp8Settings("delayed", "hybrid", amax_history_len=16),
    "delayed e4m3": Fp8Settings("delayed", "e4m3", amax_history_len=16),
    "tensorwise hybrid": Fp8Settings("tensorwise", "hybrid"),
    "blockwise e4m3": Fp8Settings("blockwise", "e4m3"),
}
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Two layers as wide as the 2B's: hidden 2048, 16 query heads and 8 key-value heads of 128, MLP 6144."""
    path, config = tmp_path_factory.mktemp("two_layers"), tiny_config(layers=2)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = 2048, 6144, 128
    text.num_attention_heads, text.num_key_value_heads = 16, 8
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [24, 20, 20]}
    config.vision_config.out_hidden_size = 2048
    tiny_model(config).save_pretrained(path)
    return path


def build(checkpoint: Path, layers: LayerSettings, *, dtype: torch.dtype = torch.bfloat16) -> Actor:
    return Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=AdamSettings(1e-4),
        device="cuda", dtype=dtype, layers=layers, keep_reference=False,
    )  # fmt: skip


def trained_logprobs(actor: Actor, samples: list[TrainingSample]) -> torch.Tensor:
    pairs = zip(actor.logprobs(samples), samples, strict=True)
    return torch.cat([scores[torch.tensor(sample.loss_mask)] for scores, sample in pairs])


def batch_of(samples: list[TrainingSample]) -> TrainBatch:
    return TrainBatch(tuple(samples), num_planned_rollouts=6)


@pytest.fixture(scope="module")
def exact(checkpoint) -> torch.Tensor:
    """Log-probs of the local layers in float32."""
    return trained_logprobs(build(checkpoint, LOCAL, dtype=torch.float32), mixed_samples())


@pytest.fixture(scope="module")
def bf16_error(checkpoint, exact) -> float:
    """Mean distance of the local layers in bf16."""
    return float((trained_logprobs(build(checkpoint, LOCAL), mixed_samples()) - exact).abs().mean())


def test_bf16_is_as_near_to_float32_as_the_local_layers(checkpoint, exact, bf16_error):
    error = float((trained_logprobs(build(checkpoint, TE), mixed_samples()) - exact).abs().mean())
    assert error < 2 * bf16_error


def test_bf16_gradients(checkpoint):
    norms = [
        build(checkpoint, layers).update(batch_of(mixed_samples()), loss=LOSS)["update/grad_norm"]
        for layers in (LOCAL, TE)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


@EVERY_RECIPE
def test_fp8_is_within_its_four_bits(checkpoint, exact, bf16_error, recipe):
    actor = build(checkpoint, replace(TE, fp8=recipe))
    actor.logprobs(mixed_samples())  # delayed scaling has seen nothing before its first pass
    error = float((trained_logprobs(actor, mixed_samples()) - exact).abs().mean())
    assert bf16_error < error < 16 * bf16_error


@EVERY_RECIPE
def test_the_distance_from_a_bf16_engine_is_a_metric(checkpoint, recipe):
    local, samples = build(checkpoint, LOCAL), mixed_samples()
    engine = [tuple(scores.tolist()) for scores in local.logprobs(samples)]
    samples = [replace(sample, engine_logprobs=scores) for sample, scores in zip(samples, engine, strict=True)]
    exactly = build(checkpoint, LOCAL).update(batch_of(samples), loss=LOSS)
    assert exactly["engine/logprob_diff_mean"] < 1e-6
    actor = build(checkpoint, replace(TE, fp8=recipe))
    actor.logprobs(samples)
    metrics = actor.update(batch_of(samples), loss=LOSS)
    assert 0 < metrics["engine/logprob_diff_mean"] <= metrics["engine/logprob_diff_max"] < 1
    assert metrics["engine/kl"] > 0


def test_the_ends_of_the_model_in_bf16_are_bf16(checkpoint, exact, bf16_error):
    """With both of the two layers exempt, nothing is left of FP8."""
    recipe = Fp8Settings("tensorwise", first_last_layers_bf16=True)
    error = float((trained_logprobs(build(checkpoint, replace(TE, fp8=recipe)), mixed_samples()) - exact).abs().mean())
    assert error < 2 * bf16_error


@EVERY_RECIPE
def test_what_is_exported_is_not_rounded_to_fp8(checkpoint, recipe):
    expected = dict(build(checkpoint, LOCAL).hf_tensors())
    for name, tensor in build(checkpoint, replace(TE, fp8=recipe)).hf_tensors():
        assert torch.equal(tensor, expected[name]), name


def test_checkpoints_have_the_names_of_the_local_layers(checkpoint):
    names = [build(checkpoint, layers).sharded_state().keys() for layers in (LOCAL, TE)]
    assert names[0] == names[1]


@EVERY_RECIPE
def test_ten_steps_stay_near_the_local_layers(checkpoint, recipe):
    losses = []
    for layers in (LOCAL, replace(TE, fp8=recipe)):
        actor = build(checkpoint, layers)
        for _ in range(10):
            metrics = actor.update(batch_of(mixed_samples()), loss=LOSS)
        losses.append(trained_logprobs(actor, mixed_samples()).mean())
        assert metrics["update/grad_norm"] > 0
    assert abs(losses[1] - losses[0]) < 0.1
