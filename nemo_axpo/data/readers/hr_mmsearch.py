"""HR-MMSearch: ``data/train-*.parquet``, 305 questions that need a close look and a search.

    sample_id  text     query  text     query_image  {"bytes", "path"}     ground_truth  text
    category   text     difficulty: not used

Source: https://huggingface.co/datasets/sensenova/HR-MMSearch (its card).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord, user_turn
from nemo_axpo.data.readers.base import RowPlace
from nemo_axpo.data.row_fields import RowFields

SOURCE = "hr_mmsearch"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its category as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("query_image", root=place.image_root)
    return QuestionRecord(
        id=f"{source}-{fields.identifier('sample_id')}",
        messages=user_turn(fields.text("query"), num_images=len(images), where=f"{place.where}, field 'query'"),
        answer=fields.text("ground_truth"),
        source=source,
        images=images,
        kind=fields.optional_text("category"),
    )
