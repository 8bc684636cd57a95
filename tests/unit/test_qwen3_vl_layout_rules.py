"""Layouts that a model can and cannot be divided by."""

from __future__ import annotations

import pytest
from tiny_qwen3_vl import tiny_config

from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.layout_rules import layout_problems
from nemo_axpo.plan.published import SIZES, published_config


@pytest.mark.parametrize("size", SIZES)
def test_the_published_models_can_be_shared(size):
    for tensor_parallel in (1, 2, 4, 8):
        for pipeline_parallel in (1, 2, 4):
            layout = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
            assert layout_problems(published_config(size), **layout) == []


def test_every_size_that_does_not_divide_is_named_with_those_that_would():
    # 4 heads, 2 key-value heads, intermediate 48 and vocabulary 96 over 5; 3 layers over 2.
    problems = layout_problems(tiny_config(), tensor_parallel=5, pipeline_parallel=2)
    assert [problem.split()[0] for problem in problems[:5]] == [
        "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "num_hidden_layers",
    ]  # fmt: skip
    assert problems[0].endswith("got 4 over 5: share it by 1 or 2 or 4")
    assert problems[4].endswith("got 3 over 2: share it by 1")


def test_deepstack_levels_need_layers_on_the_first_stage():
    # Two levels; four stages of one layer each leave the second level without a layer, two stages of two do not.
    (problem,) = layout_problems(tiny_config(layers=4), tensor_parallel=1, pipeline_parallel=4)
    assert "every DeepStack level" in problem and "got 2 levels, 1 layers: use at most 2 pipeline stages" in problem
    assert layout_problems(tiny_config(layers=4), tensor_parallel=1, pipeline_parallel=2) == []


def test_the_model_refuses_what_the_rules_refuse():
    with pytest.raises(ValueError, match="num_key_value_heads must be divisible.*got 2 over 4: share it by 1 or 2"):
        transformer_config(tiny_config(), tensor_parallel=4)
