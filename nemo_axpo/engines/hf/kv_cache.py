"""Preallocated keys and values of all cache rows, with the row moves that keep the running rows in front."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KvCache:
    """Keys ``[layers, rows, kv heads, head_dim, positions]``, values ``[layers, rows, kv heads, positions, head_dim]``.

    Layer-major, so that neighbouring rows of one layer are one strided batch: attention reads the cache in place. Keys
    lie transposed, so that both products of a one-token step run along memory (a third faster on a CPU). Zeros at the
    start: a masked position must be finite, for 0 · NaN is NaN.
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
        shape = (num_layers, num_rows, num_kv_heads)
        self._keys = torch.zeros(*shape, head_dim, num_positions, device=device, dtype=dtype)
        self._values = torch.zeros(*shape, num_positions, head_dim, device=device, dtype=dtype)
        self.num_rows = num_rows
        self.num_positions = num_positions
        self.device = device
        self.dtype = dtype

    def write(self, layer: int, *, rows_N: Tensor, positions_N: Tensor, keys_NHD: Tensor, values_NHD: Tensor) -> None:
        """Stores the keys and values of N tokens, one at each (row, position)."""
        self._keys[layer][rows_N, :, :, positions_N] = keys_NHD
        self._values[layer][rows_N, :, positions_N] = values_NHD

    def read(self, layer: int, *, rows: slice, num_positions: int) -> tuple[Tensor, Tensor]:
        """Views, nothing copied: keys ``[rows · kv heads, head_dim, S]``, values ``[rows · kv heads, S, head_dim]``."""
        keys = self._keys[layer, rows].flatten(0, 1)[:, :, :num_positions]
        values = self._values[layer, rows].flatten(0, 1)[:, :num_positions]
        return keys, values

    def copy(self, sources: Sequence[int], *, targets: Sequence[int], num_positions: int) -> None:
        """Copies the first positions of ``sources`` onto ``targets``; both may overlap, as in a permutation."""
        from_rows = torch.tensor(sources, device=self.device)
        to_rows = torch.tensor(targets, device=self.device)
        for filled in (self._keys[..., :num_positions], self._values[:, :, :, :num_positions]):
            filled.index_copy_(1, to_rows, filled.index_select(1, from_rows))

    def clear(self) -> None:
        """Zeroes everything (a diverged policy may have left NaN behind)."""
        self._keys.zero_()
        self._values.zero_()
