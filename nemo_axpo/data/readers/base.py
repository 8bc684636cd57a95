"""What a reader is: a row of a data set in, a question record out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_axpo.data.image_sources import ImageSource
from nemo_axpo.data.questions import QuestionRecord, user_turn
from nemo_axpo.data.row_fields import RowFields


@dataclass(frozen=True)
class RowPlace:
    """Where a row comes from, and what its file's entry in the config says of it."""

    where: str
    """File and row, for messages."""
    source: str | None = None
    """Name of the data source, where the config gives one."""
    image_root: str | Path | None = None
    """Directory that relative image paths start from."""


class Reader(Protocol):
    """Reads one layout. A user's own reader is such a function in a file of one's own."""

    def __call__(self, row: Mapping[str, Any], place: RowPlace) -> QuestionRecord | None:
        """The record; None for a row that the reader leaves out on purpose. DataError names row and field."""


def single_turn(
    fields: RowFields,
    *,
    source: str,
    identifier: str,
    text_field: str,
    images: Sequence[ImageSource],
    answer: str,
    text: str | None = None,
    candidate_answers: Sequence[str] = (),
    kind: str = "",
) -> QuestionRecord:
    """The record of a question of one user turn, whose id is unique beyond its data set: ``<source>-<identifier>``.

    ``text_field``: where the question stands; ``text``: what is asked, where that is not the field as it is.
    """
    asked = fields.text(text_field) if text is None else text
    return QuestionRecord(
        id=f"{source}-{identifier}",
        messages=user_turn(asked, num_images=len(images), where=f"{fields.where}, field {text_field!r}"),
        answer=answer,
        source=source,
        images=tuple(images),
        candidate_answers=tuple(candidate_answers),
        kind=kind,
    )
