"""Math-VR: ``data/test-00000-of-00001.parquet``, 2,500 English questions with and without pictures.

    id        integer      question  text with ``<image1>`` to ``<image8>``     image1 … image8  {"bytes", "path"} or null
    answers   text, or a list with one per part of the question                 category  ``text`` or ``multimodal``
    number_of_answers, total_score, scoring_points, scores: of the authors' process score, not used

Source: https://github.com/HKU-MMLab/Math-VR-CodePlot-CoT (``Math-VR-Infer.py``, ``Math-VR-Eval.py``) and
https://huggingface.co/datasets/gogoduan/Math-VR-bench.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.image_sources import ImageSource
from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.readers.image_marks import numbered_marks, unnumbered
from nemo_axpo.data.row_fields import RowFields

SOURCE = "math_vr"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its category as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    text = fields.text("question")
    images = tuple(image for number in numbered_marks(text) for image in _image(fields, number, place=place))
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("id"),
        text_field="question",
        text=unnumbered(text),
        answer=_answer(fields),
        images=images,
        kind=fields.optional_text("category"),
    )


def read_text(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord | None:
    """As :func:`read`, of the questions without pictures."""
    return _of_category("text", row, place)


def read_multimodal(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord | None:
    """As :func:`read`, of the questions with pictures."""
    return _of_category("multimodal", row, place)


def _of_category(category: str, row: Mapping[str, Any], place: RowPlace) -> QuestionRecord | None:
    is_wanted = RowFields(row, where=place.where).text("category") == category
    return read(row, place) if is_wanted else None


def _image(fields: RowFields, number: int, *, place: RowPlace) -> tuple[ImageSource, ...]:
    """The image that the text marks; DataError where the row has none."""
    fields.value(f"image{number}")
    return fields.images(f"image{number}", root=place.image_root)


def _answer(fields: RowFields) -> str:
    """Parts of an answer in one line."""
    if isinstance(fields.value("answers"), str | int | float):
        return fields.text("answers")
    parts = fields.texts("answers")
    if not parts:
        raise fields.problem("answers", "a text, or a list of texts that is not empty", got=fields.value("answers"))
    return "; ".join(parts)
