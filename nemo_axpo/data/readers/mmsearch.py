"""MMSearch: ``end2end.parquet``, 300 questions, some without a picture.

    sample_id  text     query  text       query_image  {"bytes", "path"} or null       gt_answer  text
    alternative_gt_answers  list of texts, or that list as JSON text                   area, subfield  texts
    image_search_result, timestamp, gt_requery: not used

Source: https://huggingface.co/datasets/CaraJ/MMSearch and https://github.com/CaraJ7/MMSearch (``eval_end2end.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields

SOURCE = "mmsearch"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its area as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("query_image", root=place.image_root)
    answer = fields.text("gt_answer")
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("sample_id"),
        text_field="query",
        answer=answer,
        images=images,
        candidate_answers=tuple(other for other in _alternatives(fields) if other != answer),
        kind=fields.optional_text("area"),
    )


def _alternatives(fields: RowFields) -> tuple[str, ...]:
    name = "alternative_gt_answers"
    value = fields.value(name) if fields.has(name) else []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise fields.problem(name, "a list, or a list as JSON", got=value) from None
    return RowFields({name: value}, where=fields.where).texts(name)
