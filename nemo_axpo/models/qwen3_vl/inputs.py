"""What the model reads: rows packed token by token, with every shared beginning held once.

Rows of one question share their prompt, continuations share a thinking prefix, and all rows share the system turn. A
token whose whole past is equal in several rows has the same hidden state in all of them, so it is computed once. Rows
``a b c`` and ``a b d e`` pack into T = 5 tokens ``a b c d e``::

    row 0: keys 0 1 2      queries 0 1 2     all of it is new
    row 1: keys 0 1 3 4    queries 3 4       positions 2 and 3; the rest was computed in row 0

Linear layers and norms see T tokens; only attention unfolds the rows, and of each only the queries that are new: into
padded blocks (:class:`PaddedRows`) or into segments for a variable-length kernel (:class:`ThdRows`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowBlock:
    """B rows that run through attention together; S key positions, Q queries per row, padded on the right."""

    query_BQ: Tensor
    """int64: packed token of each query; anything valid at padding."""
    key_BS: Tensor
    """int64: packed token of each row position; anything valid at padding."""
    mask_B1QS: Tensor | None
    """float32, added to the attention scores: 0 where a query sees a key, -inf where not. None for plain causal rows,
    whose queries are all positions: there padding lies after everything that counts, so no mask is needed."""


@dataclass(frozen=True)
class PaddedRows:
    """How rows share T tokens, as blocks of similarly long rows."""

    blocks: tuple[RowBlock, ...]
    source_T: Tensor
    """int64 ``[T]``: where each token was a query, in the queries of all blocks, flattened and concatenated."""

    @property
    def num_queries(self) -> int:
        """Padding included."""
        return sum(block.query_BQ.numel() for block in self.blocks)

    def to(self, device: torch.device) -> PaddedRows:
        """The same rows on ``device``."""
        blocks = (RowBlock(*(_moved(value, device) for value in vars(block).values())) for block in self.blocks)
        return PaddedRows(tuple(blocks), self.source_T.to(device))


@dataclass(frozen=True)
class ThdRows:
    """How rows share T tokens, as R segments without padding ("thd": tokens, heads, channels).

    Packed tokens are numbered in the order in which rows introduce them, so the new queries of row after row are the
    packed tokens as they stand; only keys are gathered. The last query of a segment stands at its last key. The example
    of this module: keys ``0 1 2 | 0 1 3 4``, queries ``0 1 2 | 3 4``, key starts 0 3 7, query starts 0 3 5.
    """

    key_K: Tensor
    """int64: packed token of each key of each row."""
    query_start_R: Tensor
    """int32 ``[R + 1]``: first query of each segment, then T."""
    key_start_R: Tensor
    """int32 ``[R + 1]``: first key of each segment, then K."""
    max_queries: int
    """Of a segment."""
    max_keys: int
    """Of a segment."""
    num_queries: int
    """T."""

    def to(self, device: torch.device) -> ThdRows:
        """The same rows on ``device``."""
        return ThdRows(*(v.to(device) if isinstance(v, Tensor) else v for v in vars(self).values()))


PackedRows = PaddedRows | ThdRows


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
        images = tuple(ImageBatch(i.grid_thw, i.patches_IPD.to(device)) for i in self.images)
        moved = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        return PackedInputs(rows=self.rows.to(device), images=images, **moved)


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
