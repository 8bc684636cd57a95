"""HR-MMSearch: ``data/train-*.parquet``, 305 questions that need a close look and a search.

    sample_id  text     query  text     query_image  {"bytes", "path"}     ground_truth  text
    category   text     difficulty: not used

Source: https://huggingface.co/datasets/sensenova/HR-MMSearch (its card).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields

SOURCE = "hr_mmsearch"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its category as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("query_image", root=place.image_root)
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("sample_id"),
        text_field="query",
        answer=fields.text("ground_truth"),
        images=images,
        kind=fields.optional_text("category"),
    )
