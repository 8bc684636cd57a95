"""The ledger of saved tensors by hand, and against what autograd holds after a real forward pass."""

from __future__ import annotations

import pytest
import torch
from tiny_qwen3_vl import BANNED, RandomImages, sample, save_checkpoint, tiny_config

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.plan.activations import (
    Activations,
    MicrobatchShape,
    layer_ledger,
    stage_activations,
    vision_block_ledger,
)
from nemo_axpo.plan.settings import TrainerSettings
from nemo_axpo.plan.sizes import model_sizes

SIZES = model_sizes(tiny_config(layers=4))


def settings(**changes) -> TrainerSettings:
    values = {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1, "value_bytes": 2}
    return TrainerSettings(**{**values, "micro_batch_tokens": 1024, **changes})


def test_one_layer_in_bf16_by_hand():
    # H 32, I 48, 4 heads and 2 groups of 16 channels: queries 64, keys 32.
    assert layer_ledger(SIZES, settings=settings()) == {
        "input norm": 4 * 32 + 4 + 2 * 32,
        "qkv input": 2 * 32,
        "query norm": 4 * 64 + 2 * 64 + 4 * 4,
        "key norm": 4 * 32 + 2 * 32 + 4 * 2,
        "attention": 2 * (64 + 64 + 32 + 32) + 4 * 4,
        "projection input": 2 * 64,
        "mlp norm": 4 * 32 + 4 + 2 * 32,
        "mlp input": 2 * 32,
        "mlp": 2 * (2 * 48 + 48 + 48),
    }


def test_tensor_parallelism_divides_attention_and_mlp_sequence_parallelism_the_rest():
    alone = layer_ledger(SIZES, settings=settings())
    shared = layer_ledger(SIZES, settings=settings(tensor_parallel=2))
    outside = ("input norm", "qkv input", "mlp norm", "mlp input")
    assert {name: alone[name] / shared[name] for name in alone} == {
        name: 1.0 if name in outside else 2.0 for name in alone
    }
    sequence = layer_ledger(SIZES, settings=settings(tensor_parallel=2, sequence_parallel=True))
    assert all(sequence[name] == alone[name] / 2 for name in alone)


def test_one_vision_block_in_bf16_by_hand():
    # h 16, i 24, 2 heads.
    assert vision_block_ledger(SIZES.vision, value_bytes=2) == {
        "norms": 2 * (2 * 16 + 2 * 2),
        "linear inputs": 2 * 2 * 16,
        "attention": 2 * (16 + 16 + 48 + 16) + 4 * 2,
        "mlp": 2 * 2 * 24,
    }


def test_full_recomputation_keeps_layer_inputs_and_rebuilds_one_layer():
    shape = MicrobatchShape(num_tokens=100, num_image_tokens=0, num_loss_tokens=0)
    kept = stage_activations(SIZES, settings=settings(), shape=shape, stage=0)
    recomputed = stage_activations(SIZES, settings=settings(recompute="full"), shape=shape, stage=0)
    layer = sum(layer_ledger(SIZES, settings=settings()).values())
    assert recomputed == Activations(
        language=pytest.approx(kept.language - 4 * 100 * (layer - 2 * 32)), vision=0.0, recomputed=100 * layer
    )


def test_only_the_first_stage_runs_the_tower_and_only_the_last_the_output():
    shape = MicrobatchShape(num_tokens=100, num_image_tokens=40, num_loss_tokens=10)
    first, last = (
        stage_activations(SIZES, settings=settings(pipeline_parallel=2), shape=shape, stage=stage) for stage in (0, 1)
    )
    assert first.vision > 0 == last.vision
    # The last norm and the loss positions' hidden states against images placed on three levels and their indices.
    assert last.language - first.language == 100 * (4 * 32 + 4 + 2 * 32) + 10 * (2 * 32 + 8) - (
        8 * 100 + 40 * (3 * 2 * 32 + 2 * 8)
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path)
    return path


def saved_bytes(actor: Actor, inputs: object) -> int:
    """Bytes of the distinct storages that autograd keeps after a forward pass, without the weights'."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in actor._model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensor itself, so that no address is used twice

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        logits = actor._ddp(inputs)
    assert logits.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", [(), ("8x8/a", "8x6/b")], ids=["text", "images"])
def test_a_forward_pass_keeps_what_the_ledger_says(checkpoint, dtype, images):
    actor = Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=AdamSettings(1e-3), dtype=dtype
    )
    num_text = 64 - sum(2 + 4 * int(image[2]) // 2 for image in images)
    row = sample(*images, *(7 * i % 80 for i in range(num_text)), trained=20)
    assert len(row.token_ids) == 64  # a multiple of the attention's alignment: no padding
    (microbatch,) = actor._microbatches([row])
    inputs = microbatch.inputs
    shape = MicrobatchShape(inputs.token_ids_T.numel(), inputs.image_token_P.numel(), inputs.predictor_L.numel())
    expected = stage_activations(
        model_sizes(actor.hf_config),
        settings=settings(value_bytes=dtype.itemsize),
        shape=shape,
        stage=0,
    )
    assert saved_bytes(actor, inputs) == pytest.approx(expected.language + expected.vision, rel=0.01)
