"""Rows as NeMo-Aligner carries them, tensors of one batch, and back.

NeMo-Aligner cuts a batch along its first dimension and offsets what speaks of predictions by one: position t of a
``[R, S-1]`` tensor speaks of token t + 1. What is no tensor of that form (images, ids, the sampling temperature) stays in a
side table under the row's number::

    response_tokens   [R, S]     a row: prompt, model tokens, observations
    mask              [R, S-1]   tokens that are trained
    row               [R]        number in the RowTable; -1 for a row that only fills a batch up
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from nemo_axpo.types import ImageId, TrainingSample

FILLER = -1
"""Row number of a row that is none."""


@dataclass(frozen=True)
class RowRecord:
    """What a row has besides tensors."""

    rollout_id: str
    question_id: str
    image_ids: tuple[ImageId, ...]
    policy_version: int
    temperature: float


class RowTable:
    """The side table of one step; the pixels themselves are in the image store, under the image ids."""

    def __init__(self) -> None:
        self._records: list[RowRecord] = []

    def add(self, record: RowRecord) -> int:
        """The record's row number."""
        self._records.append(record)
        return len(self._records) - 1

    def __getitem__(self, number: int) -> RowRecord:
        if not 0 <= number < len(self._records):
            raise IndexError(f"row numbers are those of this step, 0 to {len(self._records) - 1}; got {number}")
        return self._records[number]

    def clear(self) -> None:
        """Forgets all rows."""
        self._records.clear()


def pack_samples(samples: Sequence[TrainingSample], *, table: RowTable, pad_id: int) -> dict[str, Tensor]:
    """One row per sample; floats are those of the sample bit for bit. No sample: tensors of no rows."""
    tokens = pack_tokens([sample.token_ids for sample in samples], pad_id=pad_id)
    width = tokens["response_tokens"].shape[1]
    numbers = [table.add(_record_of(sample)) for sample in samples]
    return {
        **tokens,
        "mask": _stacked([sample.loss_mask[1:] for sample in samples], width - 1, torch.bool),
        "advantages": _stacked([sample.advantages[1:] for sample in samples], width - 1, torch.float64),
        "engine_logprobs": _stacked([sample.engine_logprobs[1:] for sample in samples], width - 1, torch.float64),
        "row": torch.tensor(numbers, dtype=torch.int64),
    }


def pack_tokens(rows: Sequence[Sequence[int]], *, pad_id: int) -> dict[str, Tensor]:
    """``response_tokens [R, S]`` and ``response_lengths [R]``, prompts included, as NeMo-Aligner counts."""
    lengths = [len(row) for row in rows]
    return {
        "response_tokens": _stacked(rows, max(lengths, default=1), torch.int64, fill=pad_id),
        "response_lengths": torch.tensor(lengths, dtype=torch.int64),
    }


def unpack_samples(batch: Mapping[str, Tensor], *, table: RowTable) -> tuple[TrainingSample, ...]:
    """The samples that were packed, without fillers."""
    columns = ("response_tokens", "response_lengths", "mask", "advantages", "engine_logprobs", "row")
    lists = zip(*(batch[name].tolist() for name in columns), strict=True)
    return tuple(_sample_of(*values, table=table) for values in lists if values[-1] != FILLER)


def unpack_predictions(values_RS: Tensor, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Per sample ``[T]`` of a ``[R, S-1]`` tensor, 0 at the first token; without fillers."""
    rows = zip(values_RS, batch["response_lengths"].tolist(), batch["row"].tolist(), strict=True)
    return [pad(values_S[: length - 1], (1, 0)) for values_S, length, row in rows if row != FILLER]


def pack_predictions(values: Sequence[Tensor], *, width: int) -> Tensor:
    """``[R, width - 1]`` of per-row ``[T]`` values, whose first, of no prediction, is left out."""
    rows = [pad(values_T[1:], (0, width - len(values_T))) for values_T in values]
    return torch.stack(rows) if rows else torch.empty(0, width - 1)


def concatenate(batches: Sequence[Mapping[str, Tensor]], *, pad_id: int) -> dict[str, Tensor]:
    """All rows one below the other, padded to the longest."""
    assert batches, "there is at least one batch"
    width = max(batch["response_tokens"].shape[1] for batch in batches)
    return {name: torch.cat([_widened(name, batch[name], width, pad_id) for batch in batches]) for name in batches[0]}


def fill_up(batch: Mapping[str, Tensor], *, num_rows: int) -> dict[str, Tensor]:
    """The batch with fillers below it: rows of padding alone, without a token to train."""
    filled = {}
    for name, tensor in batch.items():
        missing = num_rows - len(tensor)
        assert missing >= 0, f"{len(tensor)} rows do not fit {num_rows}"
        fill = FILLER if name == "row" else 0
        filled[name] = torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), fill)])
    return filled


def select_rows(batch: Mapping[str, Tensor], keeps_R: Tensor) -> dict[str, Tensor]:
    """The rows where ``keeps_R`` is True."""
    return {name: tensor[keeps_R] for name, tensor in batch.items()}


def _record_of(sample: TrainingSample) -> RowRecord:
    return RowRecord(sample.rollout_id, sample.question_id, sample.image_ids, sample.policy_version, sample.temperature)


def _sample_of(
    tokens: list[int],
    length: int,
    mask: list[bool],
    advantages: list[float],
    engine_logprobs: list[float],
    row: int,
    *,
    table: RowTable,
) -> TrainingSample:
    record, predicted = table[row], length - 1
    return TrainingSample(
        rollout_id=record.rollout_id,
        question_id=record.question_id,
        token_ids=tuple(tokens[:length]),
        loss_mask=(False, *mask[:predicted]),
        advantages=(0.0, *advantages[:predicted]),
        engine_logprobs=(0.0, *engine_logprobs[:predicted]),
        image_ids=record.image_ids,
        policy_version=record.policy_version,
        temperature=record.temperature,
    )


def _stacked(rows: Iterable[Sequence[float]], width: int, dtype: torch.dtype, *, fill: float = 0) -> Tensor:
    padded = [torch.tensor([*row, *[fill] * (width - len(row))], dtype=dtype) for row in rows]
    return torch.stack(padded) if padded else torch.empty(0, width, dtype=dtype)


def _widened(name: str, tensor: Tensor, width: int, pad_id: int) -> Tensor:
    """Columns of tokens get ``width``, those of predictions one less; one value per row stays."""
    if tensor.ndim == 1:
        return tensor
    if name == "response_tokens":
        return pad(tensor, (0, width - tensor.shape[1]), value=pad_id)
    return pad(tensor, (0, width - 1 - tensor.shape[1]))
