"""MMFineReason: Parquet shards under ``data/``.

    id  text     question  text with one ``<image>``     answer  text     image  {"bytes", "path"}     source  text
    pass_rate    share of four answers of Qwen3-VL-4B that were right; ``qwen3vl_4b_pass_rate`` in the authors' repository
    is_consistent, captions, original and generated texts are not used

The hard questions are those with pass rate 0; the 123K release holds no others. Source:
https://huggingface.co/datasets/OpenDataArena/MMFineReason-SFT-123K-Qwen3-VL-235B-Thinking and
https://github.com/LHL3341/MMFineReason ("Data Schema").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields

SOURCE = "mmfinereason"
PASS_RATES = ("pass_rate", "qwen3vl_4b_pass_rate")
"""Names of the field, the published one first."""


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; the set it was taken from as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("image", root=place.image_root)
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("id"),
        text_field="question",
        answer=fields.text("answer"),
        images=images,
        kind=fields.optional_text("source"),
    )


def read_hard(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord | None:
    """As :func:`read`, of the questions that Qwen3-VL-4B always failed; None for the others."""
    fields = RowFields(row, where=place.where)
    name = next((name for name in PASS_RATES if fields.has(name)), PASS_RATES[0])
    return read(row, place) if fields.number(name) == 0 else None
