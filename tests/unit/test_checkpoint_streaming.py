"""A checkpoint passes through memory tensor by tensor, in and out; an export is whole, or no checkpoint at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
from pathlib import Path

import pytest
import torch
from meta_ranks import fake_rank
from safetensors.torch import load_file
from tiny_qwen3_vl import save_checkpoint, tiny_config, tiny_model

from nemo_axpo.errors import CheckpointError
from nemo_axpo.models.qwen3_vl import checkpoint_writer, loading
from nemo_axpo.models.qwen3_vl.checkpoint_reader import CheckpointReader
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.hf_mapping import global_parameters, hf_tensors, load_weights, placements
from nemo_axpo.models.qwen3_vl.hf_model import parameter_shapes
from nemo_axpo.models.qwen3_vl.model import build_stage

MIB = 2**20
LAYERS = "model.language_model.layers."


def wide_config():
    """Two tensors (embedding and output) of 64 MiB in bf16; 27 layers add 165 MiB in tensors of 2 MiB."""
    config = tiny_config(layers=27)
    config.text_config.hidden_size, config.text_config.intermediate_size = 256, 4096
    config.text_config.vocab_size, config.vision_config.out_hidden_size = 131_072, 256
    return config


def peak_growth_mib(run) -> float:
    """How far the resident size rose above what it was before ``run``; Linux resets the mark on this write."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return (memory("VmHWM") - before) / 1024


def memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def zeros(config):
    """Every tensor of the model, each made when it is asked for."""
    for name, shape in parameter_shapes(config).items():
        yield name, torch.zeros(shape, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint of 293 MiB whose largest tensor has 64, and what writing it took."""
    path, config = tmp_path_factory.mktemp("wide"), wide_config()
    parameter_shapes(config)  # whatever transformers allocates once
    growth = peak_growth_mib(
        lambda: loading.save_hf_checkpoint(path, zeros(config), hf_config=config, max_shard_bytes=100 * MIB)
    )
    return path, config, growth


def test_an_export_holds_the_largest_tensor_and_a_buffer(wide):
    path, _, growth = wide
    total = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert total > 4.5 * 64 * MIB
    assert growth < 64 + 32


@pytest.mark.parametrize("rank", [None, 1], ids=["one process", "rank 1 of 2"])
def test_an_import_holds_the_largest_tensor(wide, rank):
    path, config, _ = wide
    size = 1 if rank is None else 2
    with fake_rank(rank or 0, tensor_parallel_size=size, pipeline_parallel_size=1):
        settings = transformer_config(config, dtype=torch.bfloat16, tensor_parallel=size)
        model = build_stage(config, config=settings, device=torch.device("cpu"))
        for parameter in model.parameters():
            parameter.data.fill_(1.0)  # memory counts once it is written to
        growth = peak_growth_mib(lambda: load_weights(model, CheckpointReader(path), hf_config=config))
        assert not any(parameter.any() for parameter in model.parameters())
    assert growth < 64 / size + 32


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_reads_its_own_parts_and_no_others(tmp_path, rank):
    save_checkpoint(tmp_path / "checkpoint")
    model = tiny_model(tiny_config(layers=4))
    model.save_pretrained(tmp_path / "checkpoint")
    whole = model.state_dict()
    source = CheckpointReader(tmp_path / "checkpoint")
    asked: dict[str, tuple[slice, ...]] = {}
    read = source.read
    source.read = lambda name, *, part=(): asked.update({name: part}) or read(name, part=part)
    with fake_rank(rank, tensor_parallel_size=2, pipeline_parallel_size=2):
        config = transformer_config(tiny_config(layers=4), tensor_parallel=2, pipeline_parallel=2)
        stage = build_stage(tiny_config(layers=4), config=config, device=torch.device("cpu"))
        load_weights(stage, source, hf_config=tiny_config(layers=4))
        parameters = global_parameters(stage)
    tp_rank, pp_rank = rank % 2, rank // 2
    text = {int(name.removeprefix(LAYERS).split(".")[0]) for name in asked if name.startswith(LAYERS)}
    assert text == ({0, 1}, {2, 3})[pp_rank]
    assert ("lm_head.weight" in asked, "model.visual.pos_embed.weight" in asked) == (pp_rank == 1, pp_rank == 0)
    # 4 query heads and 2 key-value heads of 16 channels: group 0 is queries 0 and 1, key 0, value 0.
    layer = LAYERS + ("0.", "2.")[pp_rank]
    assert asked[layer + "self_attn.q_proj.weight"] == (slice(32 * tp_rank, 32 * tp_rank + 32),)
    assert asked[layer + "self_attn.k_proj.weight"] == (slice(16 * tp_rank, 16 * tp_rank + 16),)
    assert asked[layer + "mlp.down_proj.weight"] == (slice(None), slice(24 * tp_rank, 24 * tp_rank + 24))
    assert asked[layer + "input_layernorm.weight"] == ()
    qkv = parameters[f"decoder.layers.{(0, 2)[pp_rank]}.self_attention.linear_qkv.weight"]
    expected = [whole[f"{layer}self_attn.{part}_proj.weight"].chunk(2)[tp_rank] for part in "qkv"]
    assert torch.equal(qkv, torch.cat(expected))


@pytest.mark.parametrize("max_bytes", [10**9, 30_000], ids=["single", "several"])
def test_tensors_may_come_in_any_order(tmp_path, max_bytes):
    config = tiny_config()
    expected = dict(tiny_model(config).state_dict())
    loading.save_hf_checkpoint(tmp_path, reversed(list(expected.items())), hf_config=config, max_shard_bytes=max_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (max_bytes < 10**9)
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in expected.values())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert all(
            file.stat().st_size <= max_bytes + 20_000 for file in files
        )  # a header, or one tensor above the limit


def test_the_bytes_of_a_file_by_hand(tmp_path):
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    checkpoint_writer.write_tensors(tmp_path, tensors.items(), shapes=shapes, max_file_bytes=100)
    content = (tmp_path / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    assert length % 8 == 0
    assert json.loads(content[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1, 1], "data_offsets": [8, 12]},
    }
    assert content[8 + length :] == struct.pack("<3f", 1.0, 2.0, 3.0)


@pytest.mark.parametrize("max_bytes", [10**9, 30_000], ids=["single", "several"])
def test_an_interrupted_export_is_no_checkpoint(tmp_path, max_bytes):
    config = tiny_config()
    arguments = {"hf_config": config, "max_shard_bytes": max_bytes}
    tensors = tiny_model(config).state_dict()
    loading.save_hf_checkpoint(tmp_path, tensors.items(), **arguments)  # an older one, which must not remain either

    def interrupted():
        for number, item in enumerate(tensors.items()):
            if number == 40:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        loading.save_hf_checkpoint(tmp_path, interrupted(), **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(CheckpointError, match="a checkpoint holds model.safetensors or"):
        CheckpointReader(tmp_path)


def test_a_killed_export_is_no_checkpoint_and_its_files_go_with_the_next(tmp_path):
    config = tiny_config()
    (tmp_path / "model-00001-of-00002.safetensors.partial").write_bytes(b"0" * 100)
    with pytest.raises(CheckpointError, match="a checkpoint holds model.safetensors or"):
        CheckpointReader(tmp_path)
    loading.save_hf_checkpoint(tmp_path, tiny_model(config).state_dict().items(), hf_config=config)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    config = tiny_config()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint_writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs 0.00 GiB of disk in .*got 0.00 GiB free: free some"):
        loading.save_hf_checkpoint(tmp_path, tiny_model(config).state_dict().items(), hf_config=config)
    assert not list(tmp_path.glob("model*"))


def test_a_disk_that_fills_up_on_the_way(tmp_path, monkeypatch):
    config = tiny_config()
    write, calls = os.pwrite, []

    def pwrite(handle, content, offset):
        calls.append(offset)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content, offset)

    monkeypatch.setattr(checkpoint_writer.os, "pwrite", pwrite)
    with pytest.raises(CheckpointError, match="No space left on device: free some, or choose another directory"):
        loading.save_hf_checkpoint(tmp_path, tiny_model(config).state_dict().items(), hf_config=config)
    assert not list(tmp_path.glob("model*"))


def test_a_file_that_may_not_grow(tmp_path):
    """The operating system's own refusal, not a made-up one."""
    config = tiny_config()
    tensors = tiny_model(config).state_dict()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            loading.save_hf_checkpoint(tmp_path, tensors.items(), hf_config=config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("model*"))


def test_an_export_of_another_model_or_type_is_a_bug(tmp_path):
    config = tiny_config()
    tensors = dict(tiny_model(config).state_dict())
    for broken in (
        {**tensors, "model.audio.weight": torch.zeros(2)},
        {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"},
        {**tensors, "lm_head.weight": tensors["lm_head.weight"].bfloat16()},
    ):
        with pytest.raises(AssertionError):
            loading.save_hf_checkpoint(tmp_path, broken.items(), hf_config=config)
        assert not list(tmp_path.glob("model*"))


def test_placements_of_a_share_undo_their_merge():
    config = tiny_config()
    for placement in placements(config):
        shapes = [list(shape) for shape in placement.hf_shapes.values()]
        for shape in shapes:
            if placement.hf_shard_dim is not None:
                shape[placement.hf_shard_dim] //= 2
        parts = [torch.randn(shape) for shape in shapes]
        for part, again in zip(parts, placement.split(placement.merge(parts)), strict=True):
            assert torch.equal(part, again), placement.name


def test_the_model_gives_back_what_it_was_given(tmp_path):
    config = tiny_config(tied=True)
    expected = save_checkpoint(tmp_path, tied=True).state_dict()
    with fake_rank(0, tensor_parallel_size=1, pipeline_parallel_size=1):
        model = build_stage(config, config=transformer_config(config), device=torch.device("cpu"))
        load_weights(model, CheckpointReader(tmp_path), hf_config=config)
        found = {name: tensor.clone() for name, tensor in hf_tensors(model, hf_config=config)}
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
