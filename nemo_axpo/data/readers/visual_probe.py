"""VisualProbe: ``val.json`` (a list) beside the directory ``data``; the hard part has 106 questions.

    images    list of paths, which begin with the data set's own name     problem   text, with or without ``<image>``
    solution  text, in ``<answer>`` or plain      doc_id   text           data_source: not used

Source: https://huggingface.co/datasets/Mini-o3/VisualProbe_Hard and https://github.com/Mini-o3/Mini-o3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_axpo.data.image_sources import ImageSource, image_source
from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields

SOURCE = "visual_probe"
_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = tuple(_image(value, number, place=place) for number, value in enumerate(fields.sequence("images")))
    solution = fields.text("solution")
    match = _ANSWER.fullmatch(solution)
    return single_turn(
        fields,
        source=source,
        identifier=fields.identifier("doc_id"),
        text_field="problem",
        answer=match[1].strip() if match else solution,
        images=images,
    )


def _image(value: Any, number: int, *, place: RowPlace) -> ImageSource:
    """From the directory of ``val.json``, or from the one above it, whose part its paths name."""
    root = Path(place.image_root or ".")
    is_above = isinstance(value, str) and not (root / value).is_file() and (root.parent / value).is_file()
    where = f"{place.where}, field 'images[{number}]'"
    return image_source(value, where=where, root=root.parent if is_above else root)
