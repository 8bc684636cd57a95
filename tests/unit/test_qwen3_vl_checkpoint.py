"""Hugging Face checkpoints in and out: bit-exact, sharded or not, and clear errors for broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples, save_checkpoint, tiny_config
from transformers import Qwen3VLForConditionalGeneration

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.loading import load_hf_config, read_checkpoint, save_hf_checkpoint

Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"


def load(path: Path) -> Actor:
    return Actor(path, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=AdamSettings(1e-3))


def edit_tensors(path: Path, edit) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000], ids=["single", "sharded"])
def test_round_trip_is_bit_exact(tmp_path, tied, max_shard_bytes):
    source, target = tmp_path / "source", tmp_path / "target"
    expected = save_checkpoint(source, tied=tied).state_dict()
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        (source / name).write_text("{}")
    actor = load(source)
    arguments = {"hf_config": actor.hf_config, "source": source, "max_shard_bytes": max_shard_bytes}
    save_hf_checkpoint(target, actor.hf_tensors(), **arguments)
    assert (target / "model.safetensors.index.json").exists() == (max_shard_bytes < 10**9)
    assert all(
        (target / name).exists() for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja")
    )
    again = Qwen3VLForConditionalGeneration.from_pretrained(target).state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    samples = mixed_samples()
    for one, other in zip(actor.logprobs(samples), load(target).logprobs(samples), strict=True):
        assert torch.equal(one, other)


def test_smaller_export_removes_the_shards_of_a_larger_one(tmp_path):
    expected = save_checkpoint(tmp_path / "source").state_dict()
    target, config = tmp_path / "target", load_hf_config(tmp_path / "source")
    for max_shard_bytes in (20_000, 10**9):
        save_hf_checkpoint(target, expected.items(), hf_config=config, max_shard_bytes=max_shard_bytes)
    assert [file.name for file in sorted(target.glob("*.safetensors*"))] == ["model.safetensors"]


def test_tied_checkpoint_may_repeat_the_embedding(tmp_path):
    save_checkpoint(tmp_path, tied=True)
    embedding = "model.language_model.embed_tokens.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    assert "lm_head.weight" not in dict(load(tmp_path).hf_tensors())


def test_missing_tensor(tmp_path):
    save_checkpoint(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(ValueError, match=rf"1 are missing, first '{Q_PROJ}' with shape \(64, 32\): use a complete"):
        load(tmp_path)


def test_misshapen_tensor(tmp_path):
    save_checkpoint(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({Q_PROJ: torch.zeros(64, 31)}))
    with pytest.raises(ValueError, match=rf"'{Q_PROJ}' must have shape \(64, 32\) by config.json; got \(64, 31\)"):
        load(tmp_path)


def test_unknown_tensor(tmp_path):
    save_checkpoint(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({"model.audio.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"'model.audio.weight' does not belong to this Qwen3-VL"):
        load(tmp_path)


def test_truncated_file(tmp_path):
    save_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors must be a whole safetensors file.*download or export"):
        load(tmp_path)


def test_missing_shard(tmp_path):
    expected = save_checkpoint(tmp_path / "source").state_dict()
    target = tmp_path / "target"
    config = load_hf_config(tmp_path / "source")
    save_hf_checkpoint(target, expected.items(), hf_config=config, max_shard_bytes=20_000)
    sorted(target.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match=r"1 are not in .*first model-00002-of-"):
        list(read_checkpoint(target))


def test_directory_without_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds a config.json"):
        load_hf_config(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pickled .bin files are not read"):
        list(read_checkpoint(tmp_path))


def test_other_model_and_broken_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl_moe"}))
    with pytest.raises(ValueError, match="says 'qwen3_vl_moe': use a dense Qwen3-VL"):
        load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        load_hf_config(tmp_path)


def test_unsupported_configurations():
    config = tiny_config()
    with pytest.raises(ValueError, match="num_hidden_layers must be divisible.*got 3 over 2"):
        transformer_config(config, pipeline_parallel=2)
    config.text_config.attention_bias = True
    with pytest.raises(ValueError, match="attention has no bias"):
        transformer_config(config)
