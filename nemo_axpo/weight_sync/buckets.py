"""The stream of named tensors, cut into buckets. At most one bucket of tensors is held, and one ahead.

A tensor larger than a bucket travels in a bucket of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_axpo.weight_sync.layout import BucketLayout, TensorEntry, align, views


@dataclass(frozen=True)
class Bucket:
    """Tensors and where they go; not yet copied."""

    layout: BucketLayout
    tensors: tuple[Tensor, ...]
    """In the order of ``layout.entries``; any device and strides."""

    @torch.no_grad()
    def write_to(self, buffer: Tensor) -> None:
        """Copies the tensors into ``buffer``, uint8 ``[num_bytes]`` or longer."""
        for (_, place), tensor in zip(views(buffer, self.layout.entries), self.tensors, strict=True):
            place.copy_(tensor)


def pack(named_tensors: Iterable[tuple[str, Tensor]], *, bucket_bytes: int) -> Iterator[Bucket]:
    """Buckets of at most ``bucket_bytes``, in the order of the stream; no tensor at all gives one empty bucket."""
    number, num_tensors = 0, 0
    held: list[tuple[str, Tensor]] = []
    filled = 0
    for name, tensor in named_tensors:
        size = align(tensor.numel() * tensor.element_size())
        if held and filled + size > bucket_bytes:
            num_tensors += len(held)
            yield _bucket(held, number=number, num_tensors=num_tensors, is_last=False)
            number, held, filled = number + 1, [], 0
        held.append((name, tensor.detach()))
        filled += size
    yield _bucket(held, number=number, num_tensors=num_tensors + len(held), is_last=True)


def _bucket(held: list[tuple[str, Tensor]], *, number: int, num_tensors: int, is_last: bool) -> Bucket:
    entries, offset = [], 0
    for name, tensor in held:
        entries.append(TensorEntry(name, tensor.dtype, tuple(tensor.shape), offset))
        offset = align(offset + entries[-1].num_bytes)
    layout = BucketLayout(number, tuple(entries), offset, num_tensors, is_last)
    return Bucket(layout, tuple(tensor for _, tensor in held))
