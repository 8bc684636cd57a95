"""Files that the real Megatron-Bridge wrote (megatron_bridge_files/README.md), imported and compared with what it was given."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_axpo.importing.convert import import_checkpoint
from nemo_axpo.importing.torch_dist import TorchDistReader

ARCHIVES = sorted((Path(__file__).parent / "megatron_bridge_files").glob("*.tar.xz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def files(request, tmp_path) -> Path:
    """``hf``, a Hugging Face checkpoint, and ``megatron``, what Megatron-Bridge made of it."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "hf" / name).write_text("{}")
    return tmp_path


def test_they_are_here():
    assert len(ARCHIVES) == 3


def test_they_are_what_was_converted(files):
    output = import_checkpoint(files / "megatron", model_files=files / "hf", output=files / "out")
    found, expected = load_file(output / "model.safetensors"), load_file(files / "hf" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype is expected[name].dtype for name in found)


def test_tensors_lie_in_shards_of_several_ranks(files):
    reader = TorchDistReader(files / "megatron" / "iter_0000000")
    assert len({shard.file for shards in reader._shards.values() for shard in shards}) > 1
    assert len(reader._shards["language_model.embedding.word_embeddings.weight"]) == 2
