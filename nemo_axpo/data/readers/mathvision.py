"""MATH-Vision: ``data/testmini-*.parquet`` (304 questions) and ``data/test-*.parquet`` (3,040).

    id        text           question       text with ``<image1>`` …        options  list of texts, empty for free answers
    answer    letter or TeX  decoded_image  {"bytes", "path"}, one picture  subject  text
    image     path inside ``images.zip``; solution, level: not used

Options that are only A to E stand in the picture. Source: https://huggingface.co/datasets/MathLLMs/MathVision (its card).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.readers.image_marks import one_image
from nemo_axpo.data.readers.options import option_lines
from nemo_axpo.data.row_fields import RowFields

SOURCE = "mathvision"
_IN_THE_PICTURE = "ABCDE"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its subject as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("decoded_image", root=place.image_root) or fields.images("image", root=place.image_root)
    text, options = one_image(fields.text("question")), fields.texts("options")
    if options and "".join(options) != _IN_THE_PICTURE[: len(options)]:
        text = f"{text}\n{option_lines(options)}"
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("id"),
        text_field="question",
        text=text,
        answer=fields.text("answer"),
        images=images,
        kind=fields.optional_text("subject"),
    )
