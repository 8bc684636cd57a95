"""Interleaved multimodal rotary positions: text advances all three axes together, an image spreads over its grid.

Source: transformers ``Qwen3VLModel.get_rope_index`` (stills only), ``Qwen3VLTextRotaryEmbedding``; tests compare.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GridTHW = tuple[int, int, int]


def position_ids(is_image_BS: np.ndarray, *, grids: Sequence[GridTHW], merge_size: int) -> np.ndarray:
    """Positions int64 ``[3, B, S]`` of rows padded on the right; ``grids`` lists the images row by row, in order.

    An image of h × w merged patches that begins at position p holds (p, p + row, p + column); the text after it goes on
    at p + max(h, w). The placeholders of the images must be exactly the True entries of ``is_image_BS``.
    """
    advance_BS = np.ones(is_image_BS.shape, dtype=np.int64)
    offsets_3BS = np.zeros((3, *is_image_BS.shape), dtype=np.int64)
    if grids:
        offsets_3P, advance_P = _image_offsets(tuple(grids), merge_size=merge_size)
        advance_BS[is_image_BS] = advance_P
        offsets_3BS[:, is_image_BS] = offsets_3P
    # A position is the sum of the advances before it: within an image all are 0 but the last.
    return offsets_3BS + (np.cumsum(advance_BS, axis=1) - advance_BS)


def _image_offsets(grids: tuple[GridTHW, ...], *, merge_size: int) -> tuple[np.ndarray, np.ndarray]:
    parts = [_grid_offsets(grid, merge_size=merge_size) for grid in grids]
    return np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts])


@functools.lru_cache(maxsize=1024)
def _grid_offsets(grid: GridTHW, *, merge_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(time, row, column) ``[3, n]`` of one image's tokens relative to its start, and how far each advances ``[n]``."""
    rows, columns = grid[1] // merge_size, grid[2] // merge_size
    row_n, column_n = np.divmod(np.arange(rows * columns), columns)
    advance_n = np.zeros(rows * columns, dtype=np.int64)
    advance_n[-1] = max(rows, columns)
    return np.stack([np.zeros_like(row_n), row_n, column_n]), advance_n


class InterleavedRope(torch.nn.Module):
    """Cosines and sines of the rotary angles, whose frequencies take turns: time, height, width, time, height, …"""

    def __init__(self, *, head_dim: int, theta: float, sections: tuple[int, int, int]) -> None:
        """``sections``: frequency pairs of (time, height, width); they sum to ``head_dim / 2``."""
        super().__init__()
        self._inverse_frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self._axis = _axis_of_frequency(head_dim // 2, sections=sections)

    @torch.no_grad()
    def forward(self, positions_3T: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[T, 1, 1, head_dim]`` in ``dtype``, computed in float32."""
        device = positions_3T.device
        positions_TF = positions_3T.float()[self._axis.to(device)].T
        angles_TF = positions_TF * self._inverse_frequency.to(device)
        angles_TD = torch.cat((angles_TF, angles_TF), dim=-1)[:, None, None]
        return angles_TD.cos().to(dtype), angles_TD.sin().to(dtype)


def rotate(states: Tensor, *, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates ``[T, 1, heads, head_dim]`` by the angles of :class:`InterleavedRope`; channel i pairs with i + D/2."""
    cos, sin = rotary
    low, high = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-high, low), dim=-1) * sin


def _axis_of_frequency(num_frequencies: int, *, sections: tuple[int, int, int]) -> Tensor:
    """Which of (time 0, height 1, width 2) each frequency turns with, int64 ``[F]``."""
    axis = torch.zeros(num_frequencies, dtype=torch.int64)
    for number in (1, 2):
        axis[number : 3 * sections[number] : 3] = number
    return axis
