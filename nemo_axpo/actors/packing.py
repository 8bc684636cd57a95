"""Rows of token ids become :class:`PackedInputs`: sorted so that equal beginnings meet, every shared token once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from nemo_axpo.models.qwen3_vl.inputs import ImageBatch, PackedInputs, PaddedRows, RowBlock, ThdRows
from nemo_axpo.models.qwen3_vl.positions import position_ids
from nemo_axpo.types import ImageId, TrainingSample

PackingForm = Literal["padded", "thd"]
"""How attention gets its rows: in padded blocks, or as segments for a variable-length kernel."""

_ALIGNMENT = 8
"""Attention kernels are up to a third slower on lengths that do not fill their vectors."""
_MAX_MASKED_ROW = 1024
"""Longer rows are attended as a whole: their mask would cost more memory than the shared queries save time."""


class FeatureStore(Protocol):
    """What packing needs of an image store."""

    def features(self, image_id: ImageId) -> Any:
        """``pixel_values_PD`` float32 and ``grid_thw`` of one image."""


@dataclass(frozen=True)
class VisionTokens:
    """How images stand in a row of token ids."""

    image_token_id: int
    video_token_id: int
    merge_size: int
    """Patches along the side of one language-model token."""


@dataclass(frozen=True)
class PackingCounts:
    """What packing saved and what it cost."""

    num_row_tokens: int
    """Of all rows, each alone."""
    num_packed_tokens: int
    """After sharing, without fillers."""
    num_slots: int
    """Queries that attention computes: padding, fillers and what long rows compute again included."""


@dataclass(frozen=True)
class Rows:
    """Rows as arrays, padded on the right, in packing order."""

    order_B: np.ndarray
    """int64 ``[B]``: index of each row in the samples that were packed."""
    token_ids_BS: np.ndarray
    """int64 ``[B, S]``; 0 at padding."""
    mask_BS: np.ndarray
    """bool ``[B, S]``: trained tokens."""
    counts: PackingCounts


@dataclass(frozen=True)
class Sharing:
    """Which tokens rows have in common; T tokens are numbered in the order in which rows introduce them."""

    token_BS: np.ndarray
    """int64: number of the token each position shows; anything valid at padding."""
    length_B: np.ndarray
    """int64: positions of each row."""
    num_shared_B: np.ndarray
    """int64: leading positions of each row that an earlier row introduced."""
    source_T: np.ndarray
    """int64: position in the flattened ``[B · S]`` rows where each token is introduced."""


@dataclass(frozen=True)
class _Images:
    batches: tuple[ImageBatch, ...]
    grids: list[tuple[int, int, int]]
    """Grid of every image shown, row by row."""
    feature_BS: np.ndarray
    """int64 ``[B, S]``: row of the concatenated features at placeholders, -1 elsewhere."""


def pack_rows(
    samples: Sequence[TrainingSample],
    *,
    image_store: FeatureStore,
    vision: VisionTokens,
    multiple_of: int = 1,
    form: PackingForm = "padded",
) -> tuple[PackedInputs, Rows]:
    """Packs ``samples``; the number of packed tokens is padded to ``multiple_of`` (sequence parallelism splits them).

    ValueError names the row whose placeholders do not fit its images, or which holds a video.
    """
    ids_BS = stack_rows([sample.token_ids for sample in samples], dtype=np.int64)
    valid_BS = np.arange(ids_BS.shape[1]) < np.array([len(sample.token_ids) for sample in samples])[:, None]
    images = _place_images(samples, ids_BS=ids_BS, image_store=image_store, vision=vision)
    mask_BS = stack_rows([sample.loss_mask for sample in samples], dtype=bool)
    assert not mask_BS[:, 0].any(), "position 0 is never trained: nothing predicts it"

    positions_3BS = position_ids(images.feature_BS >= 0, grids=images.grids, merge_size=vision.merge_size)
    # What a position shows: a token, or one token of one image; -1 sorts a row before its extensions.
    shown_BS = np.where(images.feature_BS >= 0, images.feature_BS + ids_BS.max() + 1, ids_BS)
    shown_BS[~valid_BS] = -1
    order_B = np.lexsort(shown_BS.T[::-1])
    sharing = _share_beginnings(shown_BS[order_B], valid_BS=valid_BS[order_B])
    num_tokens = len(sharing.source_T)
    # A filler token repeats token 0 and is seen by none.
    source_T = np.pad(sharing.source_T, (0, -num_tokens % multiple_of))
    is_thd = form == "thd"
    attended = (
        thd_rows(sharing, num_fillers=len(source_T) - num_tokens) if is_thd else padded_rows(sharing, source_T=source_T)
    )

    num_slots = attended.num_queries + (0 if is_thd else len(source_T) - num_tokens)
    counts = PackingCounts(int(sharing.length_B.sum()), num_tokens, num_slots)
    rows = Rows(order_B, ids_BS[order_B], mask_BS[order_B], counts)
    feature_T = images.feature_BS[order_B].ravel()[source_T]
    row_L, position_L = np.nonzero(rows.mask_BS)
    inputs = PackedInputs(
        token_ids_T=_tensor(rows.token_ids_BS.ravel()[source_T]),
        positions_3T=_tensor(positions_3BS[:, order_B].reshape(3, -1)[:, source_T]),
        rows=attended,
        images=images.batches,
        image_token_P=_tensor(np.flatnonzero(feature_T >= 0)),
        image_feature_P=_tensor(feature_T[feature_T >= 0]),
        predictor_L=_tensor(sharing.token_BS[row_L, position_L - 1]),
    )
    return inputs, rows


def padded_rows(sharing: Sharing, *, source_T: np.ndarray) -> PaddedRows:
    """Blocks of rows with similarly many queries; rows without shared beginning, which need no mask, apart."""
    first_B = np.where(sharing.length_B > _MAX_MASKED_ROW, 0, sharing.num_shared_B)
    num_queries_B = sharing.length_B - first_B
    width = sharing.token_BS.shape[1]
    token_BS = np.pad(sharing.token_BS, ((0, 0), (0, -width % _ALIGNMENT)))
    query_BS = np.zeros(token_BS.shape, dtype=np.int64)
    blocks, num_before = [], 0
    for is_plain in (True, False):
        for rows_R in _similar(np.flatnonzero((first_B == 0) == is_plain), num_queries_B):
            blocks.append(_block(token_BS[rows_R], length_R=sharing.length_B[rows_R], first_R=first_B[rows_R]))
            num_rows, num_queries = blocks[-1].query_BQ.shape
            flat_RQ = num_before + np.arange(num_rows * num_queries).reshape(num_rows, num_queries)
            position_RQ = np.minimum(first_B[rows_R][:, None] + np.arange(num_queries), token_BS.shape[1] - 1)
            query_BS[rows_R[:, None], position_RQ] = flat_RQ
            num_before += num_rows * num_queries
    return PaddedRows(tuple(blocks), _tensor(query_BS[:, :width].ravel()[source_T]))


def thd_rows(sharing: Sharing, *, num_fillers: int) -> ThdRows:
    """Segments of all rows that introduce a token, in their order; fillers are a last segment of their own."""
    num_queries_B = sharing.length_B - sharing.num_shared_B
    is_segment_B = num_queries_B > 0
    is_key_BS = np.arange(sharing.token_BS.shape[1]) < (sharing.length_B * is_segment_B)[:, None]
    num_tokens = int(num_queries_B.sum())
    tail = [num_fillers] if num_fillers else []
    queries_R = np.array([*num_queries_B[is_segment_B], *tail])
    keys_R = np.array([*sharing.length_B[is_segment_B], *tail])
    key_K = np.concatenate([sharing.token_BS[is_key_BS], np.arange(num_tokens, num_tokens + num_fillers)])
    return ThdRows(
        key_K=_tensor(key_K),
        query_start_R=_tensor(_starts(queries_R)),
        key_start_R=_tensor(_starts(keys_R)),
        max_queries=int(queries_R.max()),
        max_keys=int(keys_R.max()),
        num_queries=num_tokens + num_fillers,
    )


def _starts(sizes_R: np.ndarray) -> np.ndarray:
    """int32 ``[R + 1]``, as the kernels want it."""
    return np.concatenate([[0], np.cumsum(sizes_R)]).astype(np.int32)


def _similar(rows_R: np.ndarray, num_queries_B: np.ndarray) -> list[np.ndarray]:
    """Groups in which the fewest queries of a row are more than half of the most; rows without any drop out."""
    rows_R = rows_R[num_queries_B[rows_R] > 0]
    rows_R = rows_R[np.argsort(-num_queries_B[rows_R], kind="stable")]
    groups: list[np.ndarray] = []
    while len(rows_R):
        is_near = 2 * num_queries_B[rows_R] > num_queries_B[rows_R[0]]
        groups.append(rows_R[is_near])
        rows_R = rows_R[~is_near]
    return groups


def _block(token_RS: np.ndarray, *, length_R: np.ndarray, first_R: np.ndarray) -> RowBlock:
    num_keys = _aligned(length_R.max())
    if not first_R.any():
        tokens = _tensor(token_RS[:, :num_keys])
        return RowBlock(tokens, tokens, None)
    position_RQ = first_R[:, None] + np.arange(_aligned((length_R - first_R).max()))
    hidden_RQS = np.arange(num_keys) > position_RQ[:, :, None]
    mask_RQS = torch.zeros(hidden_RQS.shape).masked_fill_(_tensor(hidden_RQS), float("-inf"))
    query_RQ = np.take_along_axis(token_RS, np.minimum(position_RQ, token_RS.shape[1] - 1), axis=1)
    return RowBlock(_tensor(query_RQ), _tensor(token_RS[:, :num_keys]), mask_RQS.unsqueeze(1))


def _aligned(size: int) -> int:
    return int(size) + -int(size) % _ALIGNMENT


def stack_rows(rows: Sequence[Sequence[Any]], *, dtype: Any) -> np.ndarray:
    """Rows of different length as one array ``[B, S]``, zeros on the right."""
    stacked = np.zeros((len(rows), max(map(len, rows))), dtype=dtype)
    for target, row in zip(stacked, rows):
        target[: len(row)] = row
    return stacked


def _share_beginnings(shown_BS: np.ndarray, *, valid_BS: np.ndarray) -> Sharing:
    """Which positions show a token that an earlier row computes, for rows sorted by what they show."""
    is_new_BS = valid_BS.copy()
    equal_BS = (shown_BS[1:] == shown_BS[:-1]) & valid_BS[1:]
    is_new_BS[1:] &= ~np.logical_and.accumulate(equal_BS, axis=1)
    number_BS = np.cumsum(is_new_BS).reshape(is_new_BS.shape) - 1
    # A shared position repeats the last new token above it: all rows in between share that token too.
    token_BS = np.maximum.accumulate(np.where(is_new_BS, number_BS, 0), axis=0)
    length_B = valid_BS.sum(axis=1)
    return Sharing(token_BS, length_B, length_B - is_new_BS.sum(axis=1), np.flatnonzero(is_new_BS))


def _place_images(
    samples: Sequence[TrainingSample], *, ids_BS: np.ndarray, image_store: FeatureStore, vision: VisionTokens
) -> _Images:
    features = {image_id: image_store.features(image_id) for sample in samples for image_id in sample.image_ids}
    by_grid = sorted(features.items(), key=lambda item: item[1].grid_thw)
    num_tokens = {image_id: _num_tokens(image_id, f.grid_thw, vision=vision) for image_id, f in by_grid}
    first = dict(zip(num_tokens, np.cumsum([0, *num_tokens.values()]).tolist()))
    is_image_BS = ids_BS == vision.image_token_id
    _check_placeholders(samples, ids_BS=ids_BS, is_image_BS=is_image_BS, num_tokens=num_tokens, vision=vision)

    shown = [image_id for sample in samples for image_id in sample.image_ids]
    feature_BS = np.full(ids_BS.shape, -1, dtype=np.int64)
    if shown:
        feature_BS[is_image_BS] = np.concatenate([np.arange(first[i], first[i] + num_tokens[i]) for i in shown])
    return _Images(_batches(features for _, features in by_grid), [features[i].grid_thw for i in shown], feature_BS)


def _batches(features: Any) -> tuple[ImageBatch, ...]:
    """Images sorted by grid, stacked per grid."""
    by_grid: dict[tuple[int, int, int], list[torch.Tensor]] = {}
    for image in features:
        by_grid.setdefault(image.grid_thw, []).append(image.pixel_values_PD)
    return tuple(ImageBatch(grid, torch.stack(patches)) for grid, patches in by_grid.items())


def _num_tokens(image_id: ImageId, grid_thw: tuple[int, int, int], *, vision: VisionTokens) -> int:
    time, height, width = grid_thw
    if time != 1:
        raise ValueError(
            f"only stills can be trained on; {image_id[:12]} has {time} frames: give its frames as separate images"
        )
    return height * width // vision.merge_size**2


def _check_placeholders(
    samples: Sequence[TrainingSample],
    *,
    ids_BS: np.ndarray,
    is_image_BS: np.ndarray,
    num_tokens: dict[ImageId, int],
    vision: VisionTokens,
) -> None:
    is_video_B = (ids_BS == vision.video_token_id).any(axis=1)
    found_B = is_image_BS.sum(axis=1)
    for sample, is_video, found in zip(samples, is_video_B, found_B.tolist()):
        expected = sum(num_tokens[image_id] for image_id in sample.image_ids)
        if is_video:
            raise ValueError(f"video is not supported; {sample.rollout_id} holds a video placeholder: use images")
        if found != expected:
            raise ValueError(
                f"a row holds one placeholder per image token; {sample.rollout_id} has {found} for {expected} tokens "
                f"of {len(sample.image_ids)} images: expand every image to its grid when rendering"
            )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
