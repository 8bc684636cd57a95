"""What a reader is: a row of a data set in, a question record out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_axpo.data.questions import QuestionRecord


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
