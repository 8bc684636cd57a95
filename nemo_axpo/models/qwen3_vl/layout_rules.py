"""Which layouts a Qwen3-VL can be divided by: the one home of these rules, for the model, the config and the plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_axpo.errors import ConfigError, rule_message


def require_layout(path: str | Path, *, tensor_parallel: int, pipeline_parallel: int) -> None:
    """ConfigError where the ranks of one model cannot share the checkpoint at ``path``: before any of them meets another."""
    from nemo_axpo.models.qwen3_vl.loading import load_hf_config

    problems = layout_problems(
        load_hf_config(path), tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel
    )
    if problems:
        raise ConfigError("\n".join(problems))


def layout_problems(hf_config: Any, *, tensor_parallel: int, pipeline_parallel: int) -> list[str]:
    """What of ``hf_config`` the ranks of one model cannot share; each as rule, value, cure."""
    text = hf_config.text_config
    problems = [*_indivisible(text, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)]
    levels = len(hf_config.vision_config.deepstack_visual_indexes)
    layers = text.num_hidden_layers // pipeline_parallel
    if levels > layers:
        rule = "every DeepStack level needs a decoder layer on the first pipeline stage"
        cure = f"use at most {max(1, text.num_hidden_layers // max(1, levels))} pipeline stages"
        problems.append(rule_message(rule, got=f"{levels} levels, {layers} layers", cure=cure))
    return problems


def _indivisible(text: Any, *, tensor_parallel: int, pipeline_parallel: int) -> Iterator[str]:
    shared = {
        "num_attention_heads": (text.num_attention_heads, tensor_parallel),
        "num_key_value_heads": (text.num_key_value_heads, tensor_parallel),
        "intermediate_size": (text.intermediate_size, tensor_parallel),
        "vocab_size": (text.vocab_size, tensor_parallel),
        "num_hidden_layers": (text.num_hidden_layers, pipeline_parallel),
    }
    for name, (size, parts) in shared.items():
        if size % parts:
            rule = f"{name} must be divisible by the ranks that share it"
            options = [str(number) for number in range(1, parts) if size % number == 0]
            cure = f"share it by {' or '.join(options[-3:])}"
            yield rule_message(rule, got=f"{size} over {parts}", cure=cure)
