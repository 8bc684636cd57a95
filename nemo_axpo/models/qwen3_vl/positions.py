"""Positions of tokens for the multimodal rotary embedding: text advances all three axes together, an image spreads over
its grid. An image of h × w merged patches that begins at position p holds (p, p + row, p + column) in (time, height,
width), and the text after it goes on at p + max(h, w): later positions are therefore not token indices.

Source: transformers ``Qwen3VLModel.get_rope_index`` restricted to stills; the tests compare the two on random layouts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

GridTHW = tuple[int, int, int]


def position_ids(is_image_BS: np.ndarray, *, grids: Sequence[GridTHW], merge_size: int) -> np.ndarray:
    """Positions int64 ``[3, B, S]`` of rows padded on the right; ``grids`` lists the images row by row, in order.

    The placeholders of the images must be exactly the True entries of ``is_image_BS``.
    """
    return _positions_and_ends(is_image_BS, grids=grids, merge_size=merge_size)[0]


def row_positions(is_image_T: np.ndarray, *, grids: Sequence[GridTHW], merge_size: int) -> tuple[np.ndarray, int]:
    """Positions int64 ``[3, T]`` of one row, and the position of the token after it."""
    positions_31T, ends_1T = _positions_and_ends(is_image_T[None], grids=grids, merge_size=merge_size)
    return positions_31T[:, 0], int(ends_1T[0, -1])


def image_runs(token_ids_T: np.ndarray, *, image_token_id: int) -> list[tuple[int, int]]:
    """``[start, stop)`` of every unbroken run of image placeholders. Example: ``7 I I I 8`` → ``[(1, 4)]``."""
    is_image = np.zeros(len(token_ids_T) + 2, dtype=bool)
    is_image[1:-1] = token_ids_T == image_token_id
    edges = np.flatnonzero(is_image[1:] != is_image[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2]))


def num_image_tokens(grid_thw: GridTHW, *, merge_size: int) -> int:
    """Placeholders of one image: its patches divided by the merged square of ``merge_size``² patches."""
    return grid_thw[0] * grid_thw[1] * grid_thw[2] // merge_size**2


def _positions_and_ends(
    is_image_BS: np.ndarray, *, grids: Sequence[GridTHW], merge_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions ``[3, B, S]`` and, ``[B, S]``, where text right after each token would stand."""
    advance_BS = np.ones(is_image_BS.shape, dtype=np.int64)
    offsets_3BS = np.zeros((3, *is_image_BS.shape), dtype=np.int64)
    if grids:
        offsets_3P, advance_P = _image_offsets(tuple(grids), merge_size=merge_size)
        advance_BS[is_image_BS] = advance_P
        offsets_3BS[:, is_image_BS] = offsets_3P
    # A position is the sum of the advances before it: within an image all are 0 but the last.
    ends_BS = np.cumsum(advance_BS, axis=1)
    return offsets_3BS + (ends_BS - advance_BS), ends_BS


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
