"""A step's training data in NeMo-Aligner's form: what ``generate_reinforce_data`` gives ``fit``, and what an optimizer step gets.

``fit`` cuts the rows into equal parts of the global batch size. A step of AXPO is cut by whole questions, of which some have
continuations, so its mini-batches differ in size. Every row therefore says its mini-batch; ``fit`` may cut as it likes, and
:func:`regroup` puts the mini-batches together again::

    rows     0 0 0 0 0 1 1 1 - -      minibatch; two fillers
    fit      |0 0 0 0 0|1 1 1 - -|    parts of global_batch_size / replicas = 5
    regroup  [0 0 0 0 0] [1 1 1]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nemo_axpo.aligner.rows import FILLER, RowTable, concatenate, fill_up, pack_samples, select_rows
from nemo_axpo.types import TrainBatch

LogProbs = Callable[[Mapping[str, Tensor]], Tensor]
"""Rows as :func:`~nemo_axpo.aligner.rows.pack_samples` makes them → ``[R, S-1]``, the policy before the step."""


def pack_step(
    minibatches: Sequence[TrainBatch],
    *,
    table: RowTable,
    pad_id: int,
    multiple_of: int,
    logprobs: LogProbs,
    min_width: int | None = None,
) -> dict[str, Tensor]:
    """This replica's rows of all mini-batches; ``fit`` gets a number of rows that ``multiple_of`` divides.

    Added columns: ``minibatch`` and ``num_other_tokens`` per row (of a mini-batch, they add up to its), and ``logprobs``,
    the policy before the step, 0 in the first mini-batch, where it is the current one. ``min_width``: rows are padded to so
    many tokens at least.
    """
    parts = [_numbered(batch, number, table=table, pad_id=pad_id) for number, batch in enumerate(minibatches)]
    rows = concatenate(parts, pad_id=pad_id)
    if min_width is not None and rows["response_tokens"].shape[1] < min_width:
        rows = concatenate([rows, _blank(rows, width=min_width)], pad_id=pad_id)
    is_later_R = (rows["minibatch"] > 0) & (rows["row"] != FILLER)
    width = rows["response_tokens"].shape[1]
    rows["logprobs"] = torch.zeros(len(rows["row"]), width - 1)
    # Every rank scores, also one without later rows: the forward pass of a replica is its ranks' common work.
    rows["logprobs"][is_later_R] = logprobs(select_rows(rows, is_later_R))
    num_rows = max(1, -(-len(rows["row"]) // multiple_of)) * multiple_of
    return fill_up(rows, num_rows=num_rows)


def regroup(parts: Iterable[Mapping[str, Tensor]], *, num_minibatches: int, pad_id: int) -> Iterator[dict[str, Tensor]]:
    """The mini-batches, in order, of what ``fit`` cut into parts; one for each, also where this replica has no row of it."""
    rows = concatenate(list(parts), pad_id=pad_id)
    for number in range(num_minibatches):
        yield select_rows(rows, rows["minibatch"] == number)


def _numbered(batch: TrainBatch, number: int, *, table: RowTable, pad_id: int) -> dict[str, Tensor]:
    """Rows of one mini-batch; a filler carries its number where it has none of its own."""
    rows = pack_samples(batch.samples, table=table, pad_id=pad_id)
    rows = fill_up(rows, num_rows=max(1, len(batch.samples)))
    num_rows = len(rows["row"])
    others = torch.zeros(num_rows, dtype=torch.int64)
    others[0] = batch.num_other_tokens
    return {**rows, "minibatch": torch.full((num_rows,), number), "num_other_tokens": others}


def _blank(rows: Mapping[str, Tensor], *, width: int) -> dict[str, Tensor]:
    """No rows, ``width`` tokens wide."""
    blank = {name: tensor[:0] for name, tensor in rows.items()}
    blank["response_tokens"] = rows["response_tokens"].new_empty(0, width)
    return blank | {name: rows[name].new_empty(0, width - 1) for name in ("mask", "advantages", "engine_logprobs")}
