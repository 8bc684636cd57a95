"""Tensors of a torch_dist checkpoint (``torch.distributed.checkpoint``, as megatron writes it), whole or in part.

The index is read by an unpickler that runs nothing (``checkpoints/index_file.py``), tensors with ``weights_only``, and only
from files of the checkpoint's own directory. Whichever layout wrote the shards, no other process is needed; a read
holds the part that was asked for and one shard. ``common.pt`` and other objects beside the tensors are not opened.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from nemo_axpo.checkpoints.index_file import INDEX_FILE, read_index
from nemo_axpo.checkpoints.manifest import Damaged
from nemo_axpo.errors import CheckpointError, rule_message

Shape = tuple[int, ...]
_CURE = "copy the checkpoint again, all its files"


@dataclass(frozen=True)
class _Shard:
    """A block of a tensor and where its bytes lie."""

    offsets: Shape
    sizes: Shape
    file: Path
    begin: int
    """First byte in the file."""
    num_bytes: int


class TorchDistReader:
    """The tensors of a checkpoint directory, read when asked for (a ``TensorSource`` of ``hf_mapping.py``)."""

    def __init__(self, directory: Path) -> None:
        """Reads the index. CheckpointError for one that is damaged, or that is not an index of tensors alone."""
        self.shapes: dict[str, Shape] = {}
        """Every tensor there is."""
        self.dtypes: dict[str, torch.dtype] = {}
        self._shards: dict[str, list[_Shard]] = {}
        try:
            index = read_index(directory)
            self._add_tensors(index, directory)
        except Damaged as error:
            raise CheckpointError(
                rule_message("a torch_dist index names tensors and files", got=error, cure=_CURE)
            ) from None
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            rule = f"{directory / INDEX_FILE} must say where each tensor lies"
            raise CheckpointError(rule_message(rule, got=repr(error), cure=_CURE)) from None

    def check(self, names: Iterable[str]) -> None:
        """CheckpointError where a shard of these tensors is not there; their values are not read."""
        for name in names:
            for shard in self._shards[name]:
                num_bytes = shard.file.stat().st_size if shard.file.is_file() else None
                if num_bytes is None or num_bytes < shard.begin + shard.num_bytes:
                    rule = f"{shard.file} must hold {shard.begin + shard.num_bytes} bytes or more, {name!r} among them"
                    got = "no such file" if num_bytes is None else f"{num_bytes} bytes"
                    raise CheckpointError(rule_message(rule, got=got, cure=_CURE))

    def read(self, name: str, *, part: tuple[slice, ...] = ()) -> Tensor:
        """One tensor; ``part`` has a slice for each of its first dimensions, () is all of it."""
        bounds = _bounds(self.shapes[name], part)
        shape = tuple(end - begin for begin, end in bounds)
        whole: Tensor | None = None
        for shard in self._shards[name]:
            overlap = _overlap(bounds, shard)
            if overlap is None:
                continue
            inside, outside = overlap
            block = self._load(shard, name)[inside]
            if tuple(block.shape) == shape:
                return block  # one shard has all of it: nothing is copied
            whole = torch.empty(shape, dtype=self.dtypes[name]) if whole is None else whole
            whole[outside] = block
        assert whole is not None, (name, part)
        return whole

    def _add_tensors(self, index: Metadata, directory: Path) -> None:
        for name, entry in index.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                continue  # an object of the training job: random states, FP8 histories
            self.shapes[name], self.dtypes[name] = tuple(entry.size), entry.properties.dtype
            shards = [_shard(name, chunk, index=index, directory=directory) for chunk in entry.chunks]
            if sum(math.prod(shard.sizes) for shard in shards) != math.prod(entry.size):
                raise ValueError(f"the shards of {name!r} do not add up to its shape {tuple(entry.size)}")
            self._shards[name] = shards

    def _load(self, shard: _Shard, name: str) -> Tensor:
        try:
            with shard.file.open("rb") as file:
                block = torch.load(
                    _FileSlice(file, shard.begin, shard.num_bytes), map_location="cpu", weights_only=True
                )
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            rule = f"{shard.file} must hold a tensor at byte {shard.begin}, a shard of {name!r}"
            raise CheckpointError(rule_message(rule, got=reason, cure=_CURE)) from error
        is_right = (
            isinstance(block, Tensor) and block.numel() == math.prod(shard.sizes) and block.dtype is self.dtypes[name]
        )
        if not is_right:
            rule = (
                f"{shard.file} must hold {shard.sizes} {self.dtypes[name]} at byte {shard.begin}, a shard of {name!r}"
            )
            got = f"{tuple(block.shape)} {block.dtype}" if isinstance(block, Tensor) else type(block).__name__
            raise CheckpointError(rule_message(rule, got=got, cure=_CURE))
        return block.view(shard.sizes)


def _shard(name: str, chunk: ChunkStorageMetadata, *, index: Metadata, directory: Path) -> _Shard:
    place = index.storage_data[MetadataIndex(name, chunk.offsets)]
    if Path(place.relative_path).name != place.relative_path:
        raise ValueError(f"{place.relative_path!r} is no file of the checkpoint's directory")
    if getattr(place, "transform_descriptors", None):
        raise ValueError(f"{name!r} is compressed ({place.transform_descriptors}), which is not supported")
    return _Shard(tuple(chunk.offsets), tuple(chunk.sizes), directory / place.relative_path, place.offset, place.length)


def _bounds(shape: Shape, part: tuple[slice, ...]) -> list[tuple[int, int]]:
    slices = (*part, *[slice(None)] * (len(shape) - len(part)))
    return [chosen.indices(size)[:2] for chosen, size in zip(slices, shape, strict=True)]


def _overlap(bounds: list[tuple[int, int]], shard: _Shard) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where a part and a shard meet, within the shard and within the part; None where they do not."""
    inside, outside = [], []
    for (begin, end), offset, size in zip(bounds, shard.offsets, shard.sizes, strict=True):
        first, last = max(begin, offset), min(end, offset + size)
        if first >= last:
            return None
        inside.append(slice(first - offset, last - offset))
        outside.append(slice(first - begin, last - begin))
    return tuple(inside), tuple(outside)


class _FileSlice(io.RawIOBase):
    """A range of an open file as a file of its own; torch reads into its tensor directly."""

    def __init__(self, file: Any, begin: int, num_bytes: int) -> None:
        super().__init__()
        self._file, self._begin, self._num_bytes, self._position = file, begin, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._num_bytes - self._position))
        self._file.seek(self._begin + self._position)
        read = self._file.readinto(view[:count])
        self._position += read
        return read
