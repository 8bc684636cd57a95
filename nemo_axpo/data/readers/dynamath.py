"""DynaMath: ten variants of 501 questions, ``data/sample_variant1-*.parquet`` to ``10``; one variant is a benchmark.

    id             text                      question       text, with its choices           decoded_image  {"bytes", "path"}
    ground_truth   letter, number or text    answer_type    ``multiple choice``, ``float`` or ``text``
    subject        text                      image (a path), knowledge_level: not used

Source: https://huggingface.co/datasets/DynaMath/DynaMath_Sample (its card). The authors ask for numbers with three
decimals and take 0.001 for equal; so do the instruction and the verifier ``number`` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields

SOURCE = "dynamath"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its subject as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("decoded_image", root=place.image_root) or fields.images("image", root=place.image_root)
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("id"),
        text_field="question",
        answer=fields.text("ground_truth"),
        images=images,
        kind=fields.optional_text("subject"),
    )
