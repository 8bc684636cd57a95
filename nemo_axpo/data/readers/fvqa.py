"""FVQA in the format of MMSearch-R1: ``fvqa_train.parquet`` and ``fvqa_test.parquet``.

    prompt        [{"role": "user", "content": text}]                                  images    [{"bytes", "path"}]
    reward_model  {"ground_truth": text, "candidate_answers": JSON list as text, "style"}
    data_id       ``fvqa_train_67``         category  ``search_required`` or ``search_free``
    data_source   ``mmsearch_r1/fvqa_train`` and image_urls are not used

Source: https://huggingface.co/datasets/lmms-lab/FVQA and https://github.com/EvolvingLMMs-Lab/multimodal-search-r1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemo_axpo.data.questions import QuestionRecord, conversation
from nemo_axpo.data.readers.base import RowPlace
from nemo_axpo.data.row_fields import RowFields

SOURCE = "fvqa"


def read(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """The record of a row; its category as kind."""
    fields, source = RowFields(row, where=place.where), place.source or SOURCE
    images = fields.images("images", root=place.image_root)
    reward = _reward(fields)
    answer = reward.text("ground_truth")
    return QuestionRecord(
        id=f"{source}-{fields.identifier('data_id')}",
        messages=conversation(fields, "prompt", num_images=len(images)),
        answer=answer,
        source=source,
        images=images,
        candidate_answers=tuple(text for text in _candidates(reward) if text != answer),
        kind=fields.optional_text("category"),
    )


def _reward(fields: RowFields) -> RowFields:
    value = fields.value("reward_model")
    return RowFields(_decoded(value, fields=fields, name="reward_model"), where=f"{fields.where}, field 'reward_model'")


def _candidates(reward: RowFields) -> tuple[str, ...]:
    """The list, which the published files hold as JSON text."""
    if not reward.has("candidate_answers"):
        return ()
    value = _decoded(reward.value("candidate_answers"), fields=reward, name="candidate_answers")
    return RowFields({"candidate_answers": value}, where=reward.where).texts("candidate_answers")


def _decoded(value: Any, *, fields: RowFields, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise fields.problem(name, "JSON", got=value) from None
