"""HR-Bench: ``hr_bench_4k.parquet`` and ``hr_bench_8k.parquet``, 200 questions each, every one four times.

    index   integer    question  text         A, B, C, D  texts        answer  letter       image  base64 text of a JPEG
    category  ``single`` or ``cross``         cycle_category  0 to 3: how often the options were moved round

The four rows of a question differ in the order of its options; the first alone is asked by :func:`read`, which leaves the
200 questions that the published scores have. Source: https://huggingface.co/datasets/DreamMr/HR-Bench and
https://github.com/DreamMr/HR-Bench.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.readers.options import option_lines
from nemo_axpo.data.row_fields import RowFields

SOURCE = "hr_bench"
_LETTERS = "ABCD"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord | None:
    """The record of a row with its options in the first order; None for the other orders."""
    cycle = RowFields(row, where=place.where).number("cycle_category")
    return read_cycles(row, place) if cycle == 0 else None


def read_cycles(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row, whatever the order of its options; its category as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("image", root=place.image_root)
    options = {letter: fields.text(letter) for letter in _LETTERS if fields.has(letter)}
    text = f"{fields.text('question')}\n{option_lines(options)}"
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("index"),
        text_field="question",
        text=text,
        answer=fields.text("answer"),
        images=images,
        kind=fields.optional_text("category"),
    )
