"""The ledger of saved tensors by hand, and against what autograd holds after a real forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plan_measures import saved_bytes
from tiny_qwen3_vl import BANNED, RandomImages, sample, save_checkpoint, tiny_config

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.plan.activations import (
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


def test_segments_pass_the_context_on_without_a_copy():
    padded, segments = (layer_ledger(SIZES, settings=settings(packs_thd=packs)) for packs in (False, True))
    assert {name for name in padded if padded[name] != segments[name]} == {"projection input"}
    assert (padded["projection input"], segments["projection input"]) == (2 * 64, 0)


def test_fused_layers_and_fp8_by_hand():
    fused = layer_ledger(SIZES, settings=settings(has_fused_layers=True, packs_thd=True))
    assert fused == {
        "input norm": 2 * 32 + 4,
        "qkv input": 2 * 32,
        "query norm": 2 * 64 + 4 * 4,
        "key norm": 2 * 32 + 4 * 2,
        "attention": 2 * (64 + 64 + 32 + 32) + 4 * 4,
        "projection input": 0,
        "mlp norm": 2 * 32 + 4,
        "mlp input": 2 * 32,
        "mlp": 2 * (2 * 48 + 48 + 48),
    }
    fp8 = layer_ledger(SIZES, settings=settings(has_fused_layers=True, packs_thd=True, has_fp8=True))
    changed = {name: size for name, size in fp8.items() if size != fused[name]}
    # Inputs of the four projections are kept in one byte.
    assert changed == {"qkv input": 32, "projection input": 64, "mlp input": 32, "mlp": 2 * (2 * 48 + 48) + 48}


def test_one_vision_block_in_bf16_by_hand():
    # h 16, i 24, 2 heads.
    assert vision_block_ledger(SIZES.vision, value_bytes=2) == {
        "norms": 2 * (2 * 16 + 2 * 2),
        "linear inputs": 2 * 2 * 16,
        "attention": 2 * (16 + 16 + 48 + 16) + 4 * 2,
        "mlp": 2 * 2 * 24,
    }


SHAPE = MicrobatchShape(num_tokens=100, num_image_tokens=5, num_loss_tokens=0)
LAYER = sum(layer_ledger(SIZES, settings=settings()).values())
HIDDEN = 2 * 32


@pytest.mark.parametrize(
    ("memory", "per_token", "rebuilt"),
    [
        # Four layers, two DeepStack levels, which are arguments of the layers they follow.
        ({"recompute": "full"}, 4 * HIDDEN + 2 * HIDDEN, LAYER),
        ({"recompute": "full", "recompute_num_layers": 3}, 2 * HIDDEN + 2 * HIDDEN, 3 * LAYER),
        ({"recompute": "full", "recompute_method": "block"}, HIDDEN + HIDDEN + 3 * LAYER, LAYER),
        # gate, up, their activation and product; queries 64, keys 32 and the projection of 128 against q, out, k, v.
        ({"recompute": "selective", "recompute_modules": ("mlp",)}, 4 * (LAYER - 2 * 192), 2 * 192),
        ({"recompute": "selective"}, 4 * (LAYER - 400 + 2 * (64 + 32 + 128)), 400),
    ],
)
def test_recomputation_by_hand(memory, per_token, rebuilt):
    plain = stage_activations(SIZES, settings=settings(), shape=SHAPE, stage=0)
    found = stage_activations(SIZES, settings=settings(memory=MemorySettings(**memory)), shape=SHAPE, stage=0)
    assert found.recomputed == 100 * rebuilt
    assert plain.language - found.language == pytest.approx(100 * (4 * LAYER - per_token))


def test_full_recomputation_keeps_the_inputs_of_vision_blocks():
    shape = MicrobatchShape(num_tokens=100, num_image_tokens=10, num_loss_tokens=0)
    plain = stage_activations(SIZES, settings=settings(), shape=shape, stage=0)
    full = stage_activations(SIZES, settings=settings(memory=MemorySettings(recompute="full")), shape=shape, stage=0)
    block = sum(vision_block_ledger(SIZES.vision, value_bytes=2).values())
    assert plain.vision - full.vision == 40 * 3 * (block - 2 * 16)
    frozen = stage_activations(SIZES, settings=settings(freezes_vision=True), shape=shape, stage=0)
    assert frozen.vision == 0 and frozen.language == plain.language


def test_only_the_first_stage_runs_the_tower_and_only_the_last_the_output():
    shape = MicrobatchShape(num_tokens=100, num_image_tokens=40, num_loss_tokens=10)
    first, last = (
        stage_activations(SIZES, settings=settings(pipeline_parallel=2), shape=shape, stage=stage) for stage in (0, 1)
    )
    assert first.vision > 0 == last.vision
    # The last norm and the loss positions' hidden states against token ids and images placed on three levels.
    assert last.language - first.language == 100 * (4 * 32 + 4 + 2 * 32) + 10 * (2 * 32 + 8) - (
        8 * 100 + 40 * (3 * 2 * 32 + 2 * 8)
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path)
    return path


RECOMPUTATION = {
    "none": {},
    "mlp": {"recompute": "selective", "recompute_modules": ("mlp",)},
    "attention": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "units of 2": {"recompute": "full", "recompute_num_layers": 2},
    "first 2": {"recompute": "full", "recompute_method": "block", "recompute_num_layers": 2},
}


# Segments only where attention is recomputed: the CPU's plain stand-in keeps masks that the kernels of a GPU do not.
PACKING = [*(("padded", name) for name in RECOMPUTATION), ("thd", "attention")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("images", [(), ("8x8/a", "8x6/b")], ids=["text", "images"])
@pytest.mark.parametrize(("packing", "recompute"), PACKING)
def test_a_forward_pass_keeps_what_the_ledger_says(checkpoint, dtype, images, packing, recompute):
    memory = MemorySettings(**RECOMPUTATION[recompute])
    actor = Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=AdamSettings(1e-3), dtype=dtype,
        memory=memory, packing=packing,
    )  # fmt: skip
    num_text = 64 - sum(2 + 4 * int(image[2]) // 2 for image in images)
    row = sample(*images, *(7 * i % 80 for i in range(num_text)), trained=20)
    assert len(row.token_ids) == 64  # a multiple of the attention's alignment: no padding
    (microbatch,) = actor._microbatches([row])
    inputs = microbatch.inputs
    shape = MicrobatchShape(inputs.token_ids_T.numel(), inputs.image_token_P.numel(), inputs.predictor_L.numel())
    how = settings(value_bytes=dtype.itemsize, memory=memory, packs_thd=packing == "thd")
    expected = stage_activations(model_sizes(actor.hf_config), settings=how, shape=shape, stage=0)
    # Recomputed layers and blocks hold their tables in a closure, where autograd does not see them.
    tables = expected.tables
    if memory.recompute == "full":
        text = stage_activations(
            model_sizes(actor.hf_config), settings=how, shape=replace(shape, num_image_tokens=0), stage=0
        )
        tables = text.tables if memory.recompute_method == "block" else 0
    assert saved_bytes(actor, inputs) == pytest.approx(expected.language + expected.vision + tables, rel=0.01)
