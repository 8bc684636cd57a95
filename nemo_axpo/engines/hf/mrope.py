"""Multimodal rotary positions of one row: text advances all three axes together, an image spreads over its grid.

Source: transformers ``Qwen3VLModel.get_rope_index`` restricted to images; the tests compare the two on random layouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GridTHW = tuple[int, int, int]


def image_runs(token_ids_T: np.ndarray, *, image_token_id: int) -> list[tuple[int, int]]:
    """``[start, stop)`` of every unbroken run of image placeholders. Example: ``7 I I I 8`` → ``[(1, 4)]``."""
    is_image = np.zeros(len(token_ids_T) + 2, dtype=bool)
    is_image[1:-1] = token_ids_T == image_token_id
    edges = np.flatnonzero(is_image[1:] != is_image[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2]))


def num_image_tokens(grid_thw: GridTHW, *, merge_size: int) -> int:
    """Placeholders of one image: its patches divided by the merged square of ``merge_size``² patches."""
    return grid_thw[0] * grid_thw[1] * grid_thw[2] // merge_size**2


def rope_positions(
    num_tokens: int, *, runs: Sequence[tuple[int, int]], grids: Sequence[GridTHW], merge_size: int
) -> tuple[np.ndarray, int]:
    """Positions int64 ``[3, num_tokens]`` (time, height, width) and the position of the token after the row.

    An image of h × w merged patches that begins at position p holds (p, p + row, p + column) and the text after it goes
    on at p + max(h, w): later positions are therefore not token indices.
    """
    positions_3T = np.empty((3, num_tokens), dtype=np.int64)
    cursor = position = 0
    for (start, stop), (_, height, width) in zip(runs, grids, strict=True):
        rows, columns = height // merge_size, width // merge_size
        positions_3T[:, cursor:start] = np.arange(position, position + start - cursor)
        position += start - cursor
        positions_3T[0, start:stop] = position
        positions_3T[1, start:stop] = position + np.repeat(np.arange(rows), columns)
        positions_3T[2, start:stop] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
        cursor = stop
    positions_3T[:, cursor:] = np.arange(position, position + num_tokens - cursor)
    return positions_3T, position + num_tokens - cursor
