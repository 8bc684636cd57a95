"""The published sizes under every layout: each Hugging Face tensor has one place, of the right shape, on every rank."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from meta_ranks import fake_rank, meta_stage

from nemo_axpo.config.load import load_config
from nemo_axpo.config.schema import OptimizerConfig, SftConfig
from nemo_axpo.models.qwen3_vl.hf_mapping import Placement, global_parameters, placements
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied, parameter_shapes
from nemo_axpo.models.qwen3_vl.layout_rules import layout_problems
from nemo_axpo.plan.parameters import rank_parameters
from nemo_axpo.plan.published import SIZES, published_config
from nemo_axpo.plan.sizes import model_sizes

PUBLISHED_PARAMETERS = {"2b": 2_127_532_032, "4b": 4_437_815_808, "8b": 8_767_123_696, "32b": 33_357_390_064}
"""What the published safetensors hold (half of total_size in the index of the bf16 files)."""
EVERY_SIZE = pytest.mark.parametrize("size", SIZES)
EVERY_LAYOUT = pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel"), [(tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4)]
)

config_of = functools.cache(published_config)


@functools.cache
def placements_of(size: str) -> list[Placement]:
    return placements(config_of(size))


def check_stage(size: str, *, tensor_parallel: int, pipeline_parallel: int, rank: int) -> list[str]:
    """Builds the stage of one rank, compares every parameter with its placement, and returns their names."""
    layout = {"tensor_parallel_size": tensor_parallel, "pipeline_parallel_size": pipeline_parallel}
    with fake_rank(rank, **layout):
        parameters = global_parameters(meta_stage(config_of(size)))
    by_name = {placement.name: placement for placement in placements_of(size)}
    is_copy = {"output_layer.weight"} if is_tied(config_of(size)) and pipeline_parallel > 1 else set()
    for name in parameters.keys() - is_copy:
        placement, parameter = by_name[name], parameters[name]
        tp_rank = rank % tensor_parallel
        parts = [hf_share(placement, hf_name, rank=tp_rank, size=tensor_parallel) for hf_name in placement.hf_shapes]
        merged = placement.merge(parts)
        assert merged.shape == placement.local_shape(size=tensor_parallel), name
        assert merged.flatten(0, merged.ndim - parameter.ndim).shape == parameter.shape, name
        if placement.shard_dim is not None:  # megatron splits it along the same dimension
            assert placement.hf_shard_dim == parameter.partition_dim, name
    return sorted(parameters.keys() - is_copy)


def hf_share(placement: Placement, hf_name: str, *, rank: int, size: int) -> torch.Tensor:
    whole = torch.empty(placement.hf_shapes[hf_name], device="meta")
    part = placement.hf_part(hf_name, rank=rank, size=size)
    return whole[part] if part else whole


@EVERY_SIZE
def test_every_hugging_face_tensor_has_exactly_one_placement(size):
    expected = parameter_shapes(config_of(size))
    if is_tied(config_of(size)):
        expected.pop(LM_HEAD)
    found = [(name, tuple(shape)) for placement in placements_of(size) for name, shape in placement.hf_shapes.items()]
    assert len(found) == len(expected)
    assert dict(found) == expected
    assert sum(math.prod(shape) for _, shape in found) == PUBLISHED_PARAMETERS[size]


@EVERY_SIZE
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_ranks_shares_of_a_tensor_are_disjoint_and_leave_nothing_over(size, ranks):
    for placement in placements_of(size):
        for hf_name, shape in placement.hf_shapes.items():
            parts = [placement.hf_part(hf_name, rank=rank, size=ranks) for rank in range(ranks)]
            if placement.shard_dim is None or ranks == 1:
                assert parts == [()] * ranks
                continue
            width = shape[placement.hf_shard_dim]
            covered = [n for *_, share in parts for n in (share.start, share.stop)]
            assert covered == [number * width // ranks for number in range(ranks + 1) for _ in (0, 1)][1:-1]
            assert width % ranks == 0


@EVERY_SIZE
@EVERY_LAYOUT
def test_every_stage_holds_its_share_and_all_of_them_everything(size, tensor_parallel, pipeline_parallel):
    assert layout_problems(config_of(size), tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel) == []
    layout = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
    last_of_stage = [tensor_parallel * (stage + 1) - 1 for stage in range(pipeline_parallel)]
    held = [name for rank in last_of_stage for name in check_stage(size, rank=rank, **layout)]
    assert sorted(held) == sorted(placement.name for placement in placements_of(size))


@pytest.mark.slow
@EVERY_SIZE
@EVERY_LAYOUT
def test_every_rank_holds_its_share(size, tensor_parallel, pipeline_parallel):
    layout = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
    expected = sorted(placement.name for placement in placements_of(size))
    for tp_rank in range(tensor_parallel):
        ranks = [tp_rank + tensor_parallel * stage for stage in range(pipeline_parallel)]
        assert sorted(name for rank in ranks for name in check_stage(size, rank=rank, **layout)) == expected


BYTES_PER_PARAMETER = 2 + 2 + 4 + 12
"""Weights and reference in bf16, gradient, and in float32 master weight and two moments; without data parallelism."""


def gib_of_fullest_rank(size: str, *, tensor_parallel: int, pipeline_parallel: int) -> float:
    sizes = model_sizes(config_of(size))
    layout = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
    counts = [rank_parameters(sizes, stage=stage, **layout).total for stage in range(pipeline_parallel)]
    return max(counts) * BYTES_PER_PARAMETER / 2**30


@EVERY_SIZE
def test_the_recipe_of_a_size_has_the_smallest_layout_that_leaves_room(size):
    actor = load_config([f"model=qwen3_vl_{size}", "model.path=/models/qwen"]).actor
    chosen = (actor.tensor_parallel, actor.pipeline_parallel)
    assert (actor.dtype, actor.distributed_optimizer, actor.sequence_parallel) == ("bfloat16", True, chosen[0] > 1)
    layouts = [(tp, 1) for tp in (1, 2, 4, 8)] + [(8, pp) for pp in (2, 4)]  # tensor parallelism stays within a node
    fits = [(tp, pp) for tp, pp in layouts if gib_of_fullest_rank(size, tensor_parallel=tp, pipeline_parallel=pp) <= 50]
    assert chosen == fits[0]


@EVERY_SIZE
def test_the_recipe_of_a_size_has_the_learning_rates_of_a_large_model(size):
    """Those of the tiny model of the embedded world would ruin it."""
    config = load_config([f"model=qwen3_vl_{size}", "model.path=/models/qwen"])
    rates = (config.optimizer.lr, config.sft.lr, config.sft.min_lr_ratio)
    assert rates == (OptimizerConfig().lr, SftConfig().lr, SftConfig().min_lr_ratio)


@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "problem"),
    [
        (16, 1, "num_key_value_heads must be divisible by the ranks that share it; got 8 over 16: share it by 2 or 4 or 8"),
        (1, 8, "num_hidden_layers must be divisible by the ranks that share it; got 36 over 8: share it by 3 or 4 or 6"),
        (1, 18, "every DeepStack level needs a decoder layer on the first pipeline stage; got 3 levels, 2 layers"),
    ],
    ids=["more ranks than key-value heads", "stages that do not divide", "DeepStack beyond the first stage"],
)  # fmt: skip
def test_layouts_that_cannot_work_are_refused(tensor_parallel, pipeline_parallel, problem):
    found = layout_problems(config_of("8b"), tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    assert len(found) == 1 and found[0].startswith(problem)
