"""Checkpoints that the real Megatron-Bridge writes under several layouts, imported and compared bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from write_checkpoint import write_checkpoint

from nemo_axpo.importing.convert import import_checkpoint
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

pytestmark = pytest.mark.megatron_bridge


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The quickstart's model with four layers, as transformers 4.57 and Megatron-Bridge 0.3 expect its config."""
    path = tmp_path_factory.mktemp("source") / "hf"
    save_tiny_checkpoint(path, tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0, num_layers=4)
    return path


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tensor_parallel": 2},
        {"tensor_parallel": 2, "pipeline_parallel": 2, "dtype": "bfloat16"},
        {"tensor_parallel": 2, "per_layer": True},
    ],
    ids=lambda layout: ", ".join(f"{key}={value}" for key, value in layout.items()) or "one rank",
)
def test_it_comes_back_as_it_went_in(tmp_path, source, layout):
    write_checkpoint(source, tmp_path / "megatron", **layout)
    output = import_checkpoint(tmp_path / "megatron", model_files=source, output=tmp_path / "hf")
    dtype = getattr(torch, layout.get("dtype", "float32"))
    found, expected = load_file(output / "model.safetensors"), load_file(source / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].to(dtype)) for name in expected)
    assert AutoConfig.from_pretrained(output).text_config.to_dict()["num_hidden_layers"] == 4
    assert json.loads((output / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
