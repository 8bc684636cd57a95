"""Safetensors files written in place, tensor by tensor, so that the model is never held: a header, then the bytes.

All shapes are known beforehand, so every tensor's place in its file is too, and they may come in any order. Files get
their names when all bytes are there, the index last: an interrupted export never looks like a checkpoint. Format: eight
bytes of header length, a JSON header of names, types, shapes and offsets, the tensors
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_axpo.errors import CheckpointError, rule_message
from nemo_axpo.models.qwen3_vl.checkpoint_reader import INDEX_FILE, SINGLE_FILE

Shape = tuple[int, ...]

_FORMAT_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_CHUNK_BYTES = 64 * 2**20
"""Bytes copied to the host and written at a time."""


@dataclass(frozen=True)
class _File:
    """One file of the checkpoint."""

    partial: Path
    """Name while it is written."""
    target: Path
    header: bytes
    offsets: Mapping[str, int]
    """Where each tensor's bytes begin, from the start of the file."""
    num_bytes: int
    """Size of the whole file."""


def write_tensors(
    path: Path, named_tensors: Iterable[tuple[str, Tensor]], *, shapes: Mapping[str, Shape], max_file_bytes: int
) -> None:
    """Writes ``named_tensors``, exactly those of ``shapes`` and all of one type, as one file or several and an index.

    Host memory: :data:`_CHUNK_BYTES` beside the tensor that arrives. An older checkpoint in ``path`` stops being one
    first. CheckpointError where the disk is, or becomes, too full.
    """
    _remove_old(path)
    stream = iter(named_tensors)
    first = next(stream)
    dtype = first[1].dtype
    files = _plan(path, shapes, dtype=dtype, max_file_bytes=max_file_bytes)
    total = sum(file.num_bytes for file in files)
    _check_space(path, num_bytes=total)
    try:
        _write(files, chain([first], stream), shapes=shapes, dtype=dtype)
    except OSError as error:
        raise CheckpointError(_space_message(path, num_bytes=total, got=f"{error}")) from error
    finally:
        for file in files:
            file.partial.unlink(missing_ok=True)
    if len(files) > 1:
        _write_index(path, files, dtype=dtype, shapes=shapes)


def _write(
    files: list[_File], named_tensors: Iterator[tuple[str, Tensor]], *, shapes: Mapping[str, Shape], dtype: torch.dtype
) -> None:
    handles = [_create(file) for file in files]
    try:
        place_of = {name: (handle, file) for handle, file in zip(handles, files) for name in file.offsets}
        for name, tensor in named_tensors:
            assert name in place_of, f"{name} is not a tensor of this model, or came twice"
            assert tuple(tensor.shape) == tuple(shapes[name]) and tensor.dtype is dtype, (
                name,
                tensor.shape,
                tensor.dtype,
            )
            handle, file = place_of.pop(name)
            _write_tensor(handle, tensor, offset=file.offsets[name])
            del tensor  # before the next one is made
        assert not place_of, f"{len(place_of)} tensors never came, first {min(place_of)}"
        for handle in handles:
            os.fsync(handle)
    finally:
        for handle in handles:
            os.close(handle)
    for file in files:
        file.partial.rename(file.target)


def _create(file: _File) -> int:
    handle = os.open(file.partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.pwrite(handle, file.header, 0)
    os.ftruncate(handle, file.num_bytes)
    return handle


def _write_tensor(handle: int, tensor: Tensor, *, offset: int) -> None:
    tensor = tensor.detach().unsqueeze(0) if tensor.ndim == 0 else tensor.detach()
    row_bytes = tensor[0].numel() * tensor.element_size()
    for rows in tensor.split(max(1, _CHUNK_BYTES // row_bytes)):
        view = memoryview(rows.contiguous().cpu().view(torch.uint8).numpy()).cast("B")
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written


def _plan(path: Path, shapes: Mapping[str, Shape], *, dtype: torch.dtype, max_file_bytes: int) -> list[_File]:
    """Which tensors go into which file, in the order of ``shapes``."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return [
        _plan_file(path, {name: shapes[name] for name in group}, sizes, dtype=dtype, number=number, count=len(groups))
        for number, group in enumerate(groups, start=1)
    ]


def _plan_file(
    path: Path, shapes: Mapping[str, Shape], sizes: Mapping[str, int], *, dtype: torch.dtype, number: int, count: int
) -> _File:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + sizes[name]
        entries[name] = {"dtype": _FORMAT_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment of what follows
    header = struct.pack("<Q", len(text)) + text
    offsets = {name: len(header) + entries[name]["data_offsets"][0] for name in shapes}
    target = path / (SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors")
    return _File(path / f"{target.name}.partial", target, header, offsets, len(header) + begin)


def _write_index(path: Path, files: list[_File], *, dtype: torch.dtype, shapes: Mapping[str, Shape]) -> None:
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file.target.name for file in files for name in file.offsets},
    }
    temporary = path / f"{INDEX_FILE}.partial"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(index, indent=2, sort_keys=True))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path / INDEX_FILE)


def _remove_old(path: Path) -> None:
    """The index first: from then on the directory is no checkpoint."""
    for name in (INDEX_FILE, SINGLE_FILE):
        (path / name).unlink(missing_ok=True)
    for stale in (*path.glob("model-*-of-*.safetensors"), *path.glob("model*.partial")):
        stale.unlink()


def _check_space(path: Path, *, num_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if free < num_bytes:
        raise CheckpointError(_space_message(path, num_bytes=num_bytes, got=f"{free / 2**30:.2f} GiB free"))


def _space_message(path: Path, *, num_bytes: int, got: str) -> str:
    rule = f"the export needs {num_bytes / 2**30:.2f} GiB of disk in {path}"
    return rule_message(rule, got=got, cure="free some, or choose another directory")
