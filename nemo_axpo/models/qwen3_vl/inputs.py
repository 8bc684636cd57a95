"""What the model reads: rows packed token by token, with every shared beginning held once.

Rows of one question share their prompt, continuations share a thinking prefix, and all rows share the system turn. A
token whose whole past is equal in several rows has the same hidden state in all of them, so it is computed once. Example:
rows ``a b c`` and ``a b d e`` pack into T = 5 tokens ``a b c d e``::

    rows.token_BS   0 1 2 (2)      where row r's position s lies among the T tokens; padding repeats any valid index
                    0 1 3  4
    rows.source_T   0 1 2 6 7      where token t is found in the flattened B·S rows

Linear layers and norms see T tokens; only attention unfolds the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedRows:
    """How B rows of at most S positions share T tokens."""

    token_BS: Tensor
    """int64 ``[B, S]``: packed token of each row position; anything valid at padding (rows are padded on the right)."""
    source_T: Tensor
    """int64 ``[T]``: one position of the flattened ``[B·S]`` rows that shows token t."""


@dataclass(frozen=True)
class ImageBatch:
    """Images of one grid."""

    grid_thw: tuple[int, int, int]
    """Patches in time (1: stills only), height, width."""
    patches_IPD: Tensor
    """float32 ``[I, P, D]``: I images of P patches in merge-block order."""


@dataclass(frozen=True)
class PackedInputs:
    """One micro-batch as every pipeline stage reads it."""

    token_ids_T: Tensor
    """int64 ``[T]``."""
    positions_3T: Tensor
    """int64 ``[3, T]``: rotary positions in time, height, width."""
    rows: PackedRows
    images: tuple[ImageBatch, ...]
    """Every image of the micro-batch once."""
    image_token_P: Tensor
    """int64 ``[P]``: packed tokens that are image placeholders."""
    image_feature_P: Tensor
    """int64 ``[P]``: for each of them its row in the features of ``images``, concatenated."""
    predictor_L: Tensor
    """int64 ``[L]``: packed token whose hidden state predicts the l-th loss token; logits exist for these alone."""

    def to(self, device: torch.device) -> PackedInputs:
        """The same inputs on ``device``."""
        if self.token_ids_T.device == device:
            return self
        rows = PackedRows(**{name: tensor.to(device) for name, tensor in vars(self.rows).items()})
        images = tuple(ImageBatch(i.grid_thw, i.patches_IPD.to(device)) for i in self.images)
        moved = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return PackedInputs(rows=rows, images=images, **moved)
