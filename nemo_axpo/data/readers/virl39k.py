r"""ViRL39K: ``39Krelease.parquet`` beside the directory ``images`` of ``images.zip``.

    question  text with one ``<image>`` per image     answer    ``\boxed{…}``      image  list of paths ``images/…``
    qid       text                                    category  text               source, PassRate_*  not used

Source: https://huggingface.co/datasets/TIGER-Lab/ViRL39K (its card, "Dataset Keys").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields
from nemo_axpo.rewards.extraction import extract_answer

SOURCE = "virl39k"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its answer without the box, its category as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("image", root=place.image_root)
    answer = fields.text("answer")
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("qid"),
        text_field="question",
        answer=extract_answer(answer, needs_block=False) or answer,
        images=images,
        kind=fields.optional_text("category"),
    )
