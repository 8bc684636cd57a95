"""Rows in NeMo-Aligner's form: what is packed comes back bit for bit, and fit may cut it as it likes."""

from __future__ import annotations

import pytest
import torch

from nemo_axpo.aligner.rows import (
    FILLER,
    RowTable,
    concatenate,
    fill_up,
    pack_samples,
    unpack_predictions,
    unpack_samples,
)
from nemo_axpo.aligner.step_data import pack_step, regroup
from nemo_axpo.types import TrainBatch, TrainingSample

PAD = 99


def sample(name: str, *, length: int, advantage: float = 1 / 3, images: tuple[str, ...] = ()) -> TrainingSample:
    """The first two tokens are prompt, the others trained."""
    mask = (False, False) + (True,) * (length - 2)
    values = tuple(advantage if trained else 0.0 for trained in mask)
    logprobs = tuple(-0.1 * t if trained else 0.0 for t, trained in enumerate(mask))
    tokens = tuple(range(length))
    return TrainingSample(name, name[:2], tokens, mask, values, logprobs, images, policy_version=3, temperature=0.9)


def test_a_row_by_hand():
    table = RowTable()
    rows = pack_samples([sample("q0/0", length=3, advantage=0.5), sample("q0/1", length=4)], table=table, pad_id=PAD)
    assert rows["response_tokens"].tolist() == [[0, 1, 2, PAD], [0, 1, 2, 3]]
    assert rows["response_lengths"].tolist() == [3, 4]
    assert rows["mask"].tolist() == [[False, True, False], [False, True, True]], "entry t speaks of token t + 1"
    assert rows["advantages"][0].tolist() == [0.0, 0.5, 0.0]
    assert table[rows["row"][1]].rollout_id == "q0/1"


def test_what_is_packed_comes_back_bit_for_bit():
    samples = [sample("q0/0", length=3), sample("q1/0", length=7, images=("a", "b")), sample("q1/1", length=2)]
    table = RowTable()
    rows = fill_up(pack_samples(samples, table=table, pad_id=PAD), num_rows=5)
    assert list(unpack_samples(rows, table=table)) == samples
    assert rows["row"].tolist()[-2:] == [FILLER, FILLER] and not rows["mask"][-2:].any()


def test_batches_of_other_widths_lie_below_each_other():
    table = RowTable()
    parts = [pack_samples([sample(name, length=n)], table=table, pad_id=PAD) for name, n in (("q0/0", 3), ("q1/0", 5))]
    rows = concatenate([*parts, pack_samples([], table=table, pad_id=PAD)], pad_id=PAD)
    assert rows["response_tokens"].shape == (2, 5) and rows["mask"].shape == (2, 4)
    assert unpack_samples(rows, table=table) == (sample("q0/0", length=3), sample("q1/0", length=5))


def step(table: RowTable, *, multiple_of: int, min_width: int | None = None) -> tuple[list[TrainBatch], dict]:
    batches = [
        TrainBatch((sample("q0/0", length=4), sample("q0/1", length=3)), 8, num_other_tokens=5),
        TrainBatch((), 8, num_other_tokens=7),
        TrainBatch((sample("q1/0", length=6),), 8),
    ]
    scored = []

    def logprobs(rows):
        scored.extend(table[number].rollout_id for number in rows["row"].tolist())
        return torch.full((len(rows["row"]), rows["response_tokens"].shape[1] - 1), -2.0)

    rows = pack_step(batches, table=table, pad_id=PAD, multiple_of=multiple_of, logprobs=logprobs, min_width=min_width)
    assert scored == ["q1/0"], "only rows of later mini-batches are scored"
    return batches, rows


@pytest.mark.parametrize("multiple_of", [1, 3, 5])
def test_minibatches_survive_how_fit_cuts_them(multiple_of):
    table = RowTable()
    batches, rows = step(table, multiple_of=multiple_of)
    assert len(rows["row"]) % multiple_of == 0
    parts = [dict(zip(rows, part)) for part in zip(*(tensor.split(multiple_of) for tensor in rows.values()))]
    grouped = list(regroup(iter(parts), num_minibatches=3, pad_id=PAD))
    assert [unpack_samples(group, table=table) for group in grouped] == [batch.samples for batch in batches]
    assert [int(group["num_other_tokens"].sum()) for group in grouped] == [5, 7, 0]
    (old,) = unpack_predictions(grouped[2]["logprobs"], grouped[2])
    assert old.tolist() == [0.0] + [-2.0] * 5


def test_rows_are_as_wide_as_asked():
    table = RowTable()
    _, rows = step(table, multiple_of=2, min_width=10)
    assert rows["response_tokens"].shape[1] == 10 and rows["logprobs"].shape[1] == 9
    assert [row.rollout_id for row in unpack_samples(rows, table=table)] == ["q0/0", "q0/1", "q1/0"]


def test_a_row_number_of_another_step_is_refused():
    with pytest.raises(IndexError, match="row numbers are those of this step"):
        RowTable()[0]
