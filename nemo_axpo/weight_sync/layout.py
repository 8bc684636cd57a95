"""What a bucket looks like on the wire: tensors one after another in one block of bytes, described by JSON values.

    bytes    | embed_tokens.weight | padding | norm.weight | padding | …
    JSON     {"number": 0, "entries": [["model…embed_tokens.weight", "bfloat16", [151936, 2048], 0], …], …}

Both ends use this file, so it imports torch and the standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_axpo.errors import WeightTransferError, rule_message

ALIGNMENT = 16
"""Bytes; a tensor may be viewed in place where its first byte is a multiple of its element size."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a bucket."""

    name: str
    """Hugging Face name."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """First byte in the bucket."""

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class BucketLayout:
    """One bucket of an update."""

    number: int
    """0, 1, 2, … within the update."""
    entries: tuple[TensorEntry, ...]
    num_bytes: int
    num_tensors: int
    """Of the update so far, this bucket included."""
    is_last: bool

    def to_json(self) -> dict[str, Any]:
        """JSON values; the inverse of :func:`read_layout`."""
        entries = [[e.name, str(e.dtype).removeprefix("torch."), list(e.shape), e.offset] for e in self.entries]
        return {**vars(self), "entries": entries}


def read_layout(values: Mapping[str, Any]) -> BucketLayout:
    """The layout in a message. WeightTransferError where a field is missing or a tensor lies outside of the bucket."""
    try:
        entries = tuple(
            TensorEntry(name, _dtype(dtype), tuple(shape), offset) for name, dtype, shape, offset in values["entries"]
        )
        layout = BucketLayout(
            values["number"], entries, values["num_bytes"], values["num_tensors"], bool(values["is_last"])
        )
    except (KeyError, TypeError, ValueError) as error:
        rule = "a bucket's message has number, entries, num_bytes, num_tensors and is_last"
        cure = "use the same version of nemo_axpo on both ends"
        raise WeightTransferError(rule_message(rule, got=f"{type(error).__name__}: {error}", cure=cure)) from error
    check_entries(layout.entries, num_bytes=layout.num_bytes)
    return layout


def check_entries(entries: tuple[TensorEntry, ...], *, num_bytes: int) -> None:
    """WeightTransferError where a tensor does not lie within ``num_bytes``."""
    for entry in entries:
        if entry.offset < 0 or entry.offset + entry.num_bytes > num_bytes:
            rule = f"every tensor must lie within its bucket of {num_bytes} bytes"
            got = f"{entry.name!r} at bytes {entry.offset} to {entry.offset + entry.num_bytes}"
            raise WeightTransferError(rule_message(rule, got=got, cure="the bucket was cut short; push again"))


def views(buffer: Tensor, entries: tuple[TensorEntry, ...]) -> list[tuple[str, Tensor]]:
    """The tensors of a bucket in its own memory. ``buffer``: its bytes, uint8 ``[num_bytes]`` or longer."""
    return [
        (entry.name, buffer[entry.offset : entry.offset + entry.num_bytes].view(entry.dtype).view(entry.shape))
        for entry in entries
    ]


def align(num_bytes: int) -> int:
    """The next multiple of :data:`ALIGNMENT`."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is no torch dtype")
    return dtype
