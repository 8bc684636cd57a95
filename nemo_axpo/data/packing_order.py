"""Rows in the order in which they are packed: sorted by what they show, so that equal beginnings are neighbours.

In this order the beginning a row shares with any row before it is the one it shares with its neighbour::

    a b c        shares 0
    a b d e      shares 2
    a b d f g    shares 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_axpo.data.row_cost import image_spans
from nemo_axpo.types import TrainingSample


@dataclass(frozen=True)
class OrderedRow:
    """One row in its place."""

    index: int
    """In the samples that were ordered."""
    num_shared: int
    """Leading tokens equal to the row before, images included; 0 for the first row."""


def packing_order(samples: Sequence[TrainingSample], *, image_token_id: int) -> list[OrderedRow]:
    """All of ``samples``, sorted; tokens of different images differ although their placeholders are the same."""
    image_ids = sorted({image_id for sample in samples for image_id in sample.image_ids})
    number = {image_id: -1 - position for position, image_id in enumerate(image_ids)}
    shown = [_shown(sample, number=number, image_token_id=image_token_id) for sample in samples]
    order = sorted(range(len(samples)), key=shown.__getitem__)
    before: list[int] = []
    rows = []
    for index in order:
        rows.append(OrderedRow(index, _num_equal(before, shown[index])))
        before = shown[index]
    return rows


def _shown(sample: TrainingSample, *, number: dict[str, int], image_token_id: int) -> list[int]:
    """Token ids with every placeholder replaced by the number of its image."""
    shown = list(sample.token_ids)
    spans = image_spans(sample.token_ids, image_token_id=image_token_id)
    for image_id, (start, stop) in zip(sample.image_ids, spans):
        shown[start:stop] = [number[image_id]] * (stop - start)
    return shown


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning, by bisection: slices are compared at the speed of C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
