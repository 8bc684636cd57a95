"""Hugging Face checkpoint directories: read tensor by tensor, and written so that transformers loads them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3VLConfig

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
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
        return Qwen3VLConfig.from_dict(values)
    except Exception as error:  # the kind depends on the field and on the version of transformers
        raise ValueError(
            f"{file} must be a configuration that transformers accepts; got {error!r}: copy it from the model's original "
            "checkpoint"
        ) from error


def read_checkpoint(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a single or sharded safetensors checkpoint, one at a time.

    ValueError names a file that is missing, truncated or otherwise unreadable, and the cure.
    """
    for file in _weight_files(Path(path)):
        with _open(file) as tensors:
            for name in sorted(tensors.keys()):
                yield name, tensors.get_tensor(name)


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor of a checkpoint, from the headers of its files; errors as :func:`read_checkpoint`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(Path(path)):
        with _open(file) as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}
    return shapes


def save_hf_checkpoint(
    path: str | Path,
    named_tensors: Iterable[tuple[str, Tensor]],
    *,
    hf_config: Qwen3VLConfig,
    source: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Writes config, safetensors (with an index where there are several) and ``source``'s tokenizer and processor.

    Streams: no more than one shard of ``max_shard_bytes`` is held at a time. The index, or the only file, comes last.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    hf_config.save_pretrained(path)
    if source is not None:
        copy_companions(source, path)
    _write_shards(path, _shards(named_tensors, max_bytes=max_shard_bytes))
    return path


def copy_companions(source: str | Path, target: str | Path) -> None:
    """Copies tokenizer, processor, chat template and generation settings from one checkpoint directory to another."""
    if Path(source).resolve() == Path(target).resolve():
        return
    for pattern in _COMPANIONS:
        for file in sorted(Path(source).glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, Path(target) / file.name)


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    """A safetensors file; ValueError for one that is not whole."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} must be a whole safetensors file; it cannot be read ({error}): it is truncated or corrupt, download or "
            "export it again"
        ) from error


def _weight_files(path: Path) -> list[Path]:
    index = path / INDEX_FILE
    if not index.is_file():
        if not (path / SINGLE_FILE).is_file():
            raise ValueError(
                f"a checkpoint holds {SINGLE_FILE} or {INDEX_FILE}; {path} has neither: give the directory of a "
                "safetensors checkpoint (pickled .bin files are not read)"
            )
        return [path / SINGLE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} must hold a weight_map; {error!r}: download the checkpoint again") from error
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise ValueError(
            f"{index.name} names {len(names)} files; {len(absent)} are not in {path}, first {absent[0]}: "
            "download the rest"
        )
    return [path / name for name in names]


def _shards(named_tensors: Iterable[tuple[str, Tensor]], *, max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in named_tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if shard and size + num_bytes > max_bytes:
            yield shard
            shard, size = {}, 0
        # A copy: parts of a fused parameter share memory, which safetensors refuses, and training goes on meanwhile.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += num_bytes
    yield shard


def _write_shards(path: Path, shards: Iterator[dict[str, Tensor]]) -> None:
    for stale in (path / SINGLE_FILE, path / INDEX_FILE, *path.glob("model-*-of-*.safetensors")):
        stale.unlink(missing_ok=True)
    written: list[tuple[Path, list[str], int]] = []
    for shard in shards:
        file = path / f"shard-{len(written) + 1}.partial"
        save_file(shard, file, metadata={"format": "pt"})
        written.append((file, list(shard), sum(t.numel() * t.element_size() for t in shard.values())))
    if len(written) == 1:
        written[0][0].rename(path / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, (file, names, _) in enumerate(written, start=1):
        target = path / f"model-{number:05d}-of-{len(written):05d}.safetensors"
        file.rename(target)
        weight_map |= dict.fromkeys(names, target.name)
    index: dict[str, Any] = {"metadata": {"total_size": sum(size for *_, size in written)}, "weight_map": weight_map}
    (path / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True))
