"""The image RL data of PyVision-RL: ``pyvision_image_rl_data.json``, a JSON list beside its images.

    id  text     question  text, options included     answer  text     image_path  one path
    ability  ``visual_search``, ``math`` …            data_source  the set it was taken from

Source: https://huggingface.co/datasets/Agents-X/PyVision-Image-RL-Data (its card) and ``rl_dataset.py`` of
https://github.com/agents-x-project/PyVision-RL, which puts the image before the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields

SOURCE = "pyvision"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its ability as kind. Ids are unique within the set a row was taken from, so both are kept."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    fields.value("image_path")
    images = fields.images("image_path", root=place.image_root)
    taken_from = fields.optional_text("data_source")
    return single_turn(
        fields,
        source=source,
        identifier="-".join(filter(None, (taken_from, fields.identifier("id")))),
        text_field="question",
        answer=fields.text("answer"),
        images=images,
        kind=fields.optional_text("ability"),
    )
