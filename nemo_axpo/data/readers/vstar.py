"""V*Bench: ``test_questions.jsonl`` beside the directories ``direct_attributes`` and ``relative_position``, 191 questions.

    image        path, or {"bytes", "path"} in Parquet copies     text   the question, ``(A) …`` a line each, a request for the letter
    category     name of the directory                            label  letter          question_id  text

Source: https://huggingface.co/datasets/craigwu/vstar_bench and https://github.com/penghao-wu/vstar; as Parquet:
https://huggingface.co/datasets/lmms-lab/vstar-bench.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import RowPlace, single_turn
from nemo_axpo.data.row_fields import RowFields

SOURCE = "vstar"
_REQUEST = re.compile(r"\s*Answer with the option's letter from the given choices directly\.\s*$")
"""Of models that do not think; it would speak against the answer format."""


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its category as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("image", root=place.image_root)
    text = _REQUEST.sub("", fields.text("text"))
    category = fields.text("category")
    return single_turn(
        fields,
        source=source,
        identifier=f"{category}-{fields.identifier('question_id')}",
        text_field="text",
        text=text,
        answer=fields.text("label"),
        images=images,
        kind=category,
    )
