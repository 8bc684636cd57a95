"""Parameter counts of the plan against the real modules and against the shards every rank holds."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_qwen3_vl import tiny_config

from nemo_axpo.models.qwen3_vl.hf_mapping import placements
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, parameter_shapes
from nemo_axpo.models.qwen3_vl.vision import VisionTower
from nemo_axpo.plan.parameters import ParameterCount, layer_parameters, rank_parameters, vision_parameters, whole_model
from nemo_axpo.plan.published import SIZES, published_config
from nemo_axpo.plan.sizes import model_sizes

CONFIGS = {"tiny": tiny_config(layers=4), "tiny tied": tiny_config(tied=True, layers=4)} | {
    size: published_config(size) for size in SIZES
}
EVERY_CONFIG = pytest.mark.parametrize("hf_config", CONFIGS.values(), ids=CONFIGS.keys())
LAYOUTS = [
    pytest.param(config, tp, pp, id=f"{name} tp{tp} pp{pp}")
    for name, config in CONFIGS.items()
    for tp in (1, 2, 4, 8)
    for pp in (1, 2, 4)
    if config.text_config.num_key_value_heads % tp == 0
]
EVERY_LAYOUT = pytest.mark.parametrize(("hf_config", "tensor_parallel", "pipeline_parallel"), LAYOUTS)


def part_of(name: str) -> str:
    """The part of :class:`ParameterCount` that a parameter of the model belongs to."""
    return {"visual": "vision", "embedding": "embedding", "output_layer": "output"}.get(name.split(".")[0], "language")


def test_one_layer_by_hand():
    # H 32, I 48, 4 query heads and 2 groups of 16: norms 2·32 + 2·16; q and o 64·32 each, k and v 32·32 each;
    # gate, up, down 48·32 each. Two ranks halve everything but the norms.
    sizes = model_sizes(tiny_config())
    assert layer_parameters(sizes, tensor_parallel=1) == 96 + 2 * 2048 + 2 * 1024 + 3 * 1536 == 10_848
    assert layer_parameters(sizes, tensor_parallel=2) == 96 + (4096 + 2048 + 4608) // 2 == 5_472


def test_the_tower_by_hand():
    # h 16, i 24, patch 3·2·4·4 = 96 values, 36 positions, 3 blocks, merge 4, out 32, two DeepStack levels.
    block = 4 * 16 + (16 + 1) * 64 + (16 + 1) * 24 + (24 + 1) * 16
    mergers = 3 * ((64 + 1) * 64 + (64 + 1) * 32) + 2 * 16 + 2 * 2 * 64
    by_hand = 97 * 16 + 36 * 16 + 3 * block + mergers
    assert vision_parameters(model_sizes(tiny_config()).vision, out_hidden=32) == by_hand


@EVERY_CONFIG
def test_the_whole_model_has_as_many_as_transformers_builds(hf_config):
    sizes = model_sizes(hf_config)
    shapes = parameter_shapes(hf_config)
    if sizes.is_tied:
        shapes.pop(LM_HEAD)
    assert whole_model(sizes).total == sum(math.prod(shape) for shape in shapes.values())
    with torch.device("meta"):
        tower = VisionTower(hf_config.vision_config)
    assert whole_model(sizes).vision == sum(parameter.numel() for parameter in tower.parameters())


@EVERY_LAYOUT
def test_every_rank_holds_what_the_placements_give_it(hf_config, tensor_parallel, pipeline_parallel):
    sizes = model_sizes(hf_config)
    last = pipeline_parallel - 1
    expected = [dict.fromkeys(vars(ParameterCount()), 0) for _ in range(pipeline_parallel)]
    for placement in placements(hf_config):
        number = math.prod(placement.local_shape(size=tensor_parallel))
        stage = {"visual": 0, "embedding": 0}.get(placement.name.split(".")[0], last)
        if placement.name.startswith("decoder.layers."):
            stage = int(placement.name.split(".")[2]) // (sizes.num_layers // pipeline_parallel)
        expected[stage][part_of(placement.name)] += number
    if sizes.is_tied and pipeline_parallel > 1:
        expected[last]["output"] = expected[0]["embedding"]  # the copy that setup_embeddings_and_output_layer makes
    for stage, count in enumerate(expected):
        layout = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
        assert vars(rank_parameters(sizes, stage=stage, **layout)) == count
