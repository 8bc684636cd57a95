"""Hugging Face checkpoint directories: read tensor by tensor, and written so that transformers loads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor
from transformers import Qwen3VLConfig

from nemo_axpo.models.qwen3_vl.checkpoint_reader import CheckpointReader
from nemo_axpo.models.qwen3_vl.checkpoint_writer import write_tensors
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied, parameter_shapes
from nemo_axpo.models.qwen3_vl.rope_keys import with_both_names

_COMPANIONS = (
    "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "generation_config.json",
)  # fmt: skip


def load_hf_config(path: str | Path) -> Qwen3VLConfig:
    """The configuration of a checkpoint directory. ValueError where there is none, or it is of another model."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(
            f"a checkpoint directory holds a config.json; {path} does not: give the directory of a Qwen3-VL checkpoint"
        )
    try:
        values = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} must be JSON; {error}: download or export the checkpoint again") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type != "qwen3_vl":
        raise ValueError(
            f"only checkpoints of model_type 'qwen3_vl' are supported; {file} says {model_type!r}: use a dense Qwen3-VL "
            "checkpoint"
        )
    absent = [name for name in ("text_config", "vision_config") if not isinstance(values.get(name), dict)]
    if absent:
        # transformers would fill in the sizes of an 8B model.
        raise ValueError(
            f"{file} must have a text_config and a vision_config; got no {absent[0]}: copy config.json from the model's "
            "original checkpoint"
        )
    try:
        return Qwen3VLConfig.from_dict(with_both_names(values))
    except Exception as error:  # the kind depends on the field and on the version of transformers
        raise ValueError(
            f"{file} must be a configuration that transformers accepts; got {error!r}: copy it from the model's original "
            "checkpoint"
        ) from error


def read_checkpoint(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a single or sharded safetensors checkpoint, one at a time; errors of :class:`CheckpointReader`."""
    reader = CheckpointReader(path)
    for name in reader.shapes:
        yield name, reader.read(name)


def save_hf_checkpoint(
    path: str | Path,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    hf_config: Qwen3VLConfig,
    source: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Writes config, safetensors (with an index where there are several) and ``source``'s tokenizer and processor.

    ``named_tensors``: the whole model, all of one type, in any order. Streams: beside the tensor that arrives, a small
    buffer is held. The index, or the only file, comes last. CheckpointError where the disk is too full.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    _save_config(hf_config, path)
    if source is not None:
        copy_companions(source, path)
    shapes = parameter_shapes(hf_config)
    if is_tied(hf_config):
        shapes.pop(LM_HEAD)
        named_tensors = ((name, tensor) for name, tensor in named_tensors if name != LM_HEAD)
    write_tensors(path, named_tensors, shapes=shapes, max_file_bytes=max_shard_bytes)
    return path


def _save_config(hf_config: Qwen3VLConfig, path: Path) -> None:
    """``config.json`` that transformers 4.57 and 5 read alike, whichever of them runs here."""
    hf_config.save_pretrained(path)
    file = path / "config.json"
    values = with_both_names(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_companions(source: str | Path, target: str | Path) -> None:
    """Copies tokenizer, processor, chat template and generation settings from one checkpoint directory to another."""
    if Path(source).resolve() == Path(target).resolve():
        return
    for pattern in _COMPANIONS:
        for file in sorted(Path(source).glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, Path(target) / file.name)
