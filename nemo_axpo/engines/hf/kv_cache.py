"""Preallocated keys and values of all cache rows, with the row moves that keep the running rows in front."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KvCache:
    """Keys and values ``[layers, 2, rows, kv heads, positions, head_dim]``.

    Layer-major, so that neighbouring rows of one layer are one strided batch: attention reads the cache in place. Zeros
    at the start: a masked position must be finite, for 0 · NaN is NaN.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_positions: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (num_layers, 2, num_rows, num_kv_heads, num_positions, head_dim)
        self._kv = torch.zeros(shape, device=device, dtype=dtype)
        self.num_rows = num_rows
        self.num_positions = num_positions
        self.device = device
        self.dtype = dtype

    def write(self, layer: int, *, rows_N: Tensor, positions_N: Tensor, keys_NHD: Tensor, values_NHD: Tensor) -> None:
        """Stores the keys and values of N tokens, one at each (row, position)."""
        keys, values = self._kv[layer]
        keys[rows_N, :, positions_N] = keys_NHD
        values[rows_N, :, positions_N] = values_NHD

    def read(self, layer: int, *, rows: slice, num_positions: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values, each ``[rows · kv heads, num_positions, head_dim]``; nothing is copied."""
        keys, values = self._kv[layer, :, rows].flatten(1, 2)[:, :, :num_positions]
        return keys, values

    def copy(self, sources: Sequence[int], *, targets: Sequence[int], num_positions: int) -> None:
        """Copies the first positions of ``sources`` onto ``targets``; both may overlap, as in a permutation."""
        rows = self._kv[:, :, :, :, :num_positions].unbind(2)
        overwritten = set(targets)
        # One strided copy a row is several times as fast as gathering them and ``index_copy_``.
        contents = [rows[source].clone() if source in overwritten else rows[source] for source in sources]
        for content, target in zip(contents, targets, strict=True):
            rows[target].copy_(content)

    def clear(self) -> None:
        """Zeroes everything (a diverged policy may have left NaN behind)."""
        self._kv.zero_()
