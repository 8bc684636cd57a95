"""One row of a data file, read field by field; what is wrong is told with file, row and field."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nemo_axpo.data.image_sources import ImageSource, image_source, shown
from nemo_axpo.errors import DataError, rule_message

_SIMILAR = 0.8
"""How much an unknown field must look like a known one to be taken for a misspelling."""


class RowFields:
    """Typed access to the fields of one row."""

    def __init__(self, row: Mapping[str, Any], *, where: str) -> None:
        """``where``: file and row, for messages. DataError for a row that is not an object with fields."""
        if not isinstance(row, Mapping):
            raise DataError(rule_message(f"{where} must be an object with fields", got=shown(row), cure="correct it"))
        self._row, self.where = row, where

    def has(self, name: str) -> bool:
        """Whether the row has a value for the field: present and not null."""
        return self._row.get(name) is not None

    def value(self, name: str) -> Any:
        """The value as it is. DataError where it is missing or null."""
        if not self.has(name):
            there = ", ".join(map(str, self._row)) or "none"
            raise DataError(
                rule_message(
                    f"{self.where} needs the field {name!r}", got=f"fields {there}", cure="add it, or drop the row"
                )
            )
        return self._row[name]

    def text(self, name: str) -> str:
        """Text that is not blank; numbers are written out (7.0 as 7). DataError for anything else."""
        value = self.value(name)
        text = _written(value)
        if text is None or not text.strip():
            raise self.problem(name, "text or a number that is not blank", got=value)
        return text

    def optional_text(self, name: str, *, default: str = "") -> str:
        """As :meth:`text`, ``default`` where the field is missing, null or blank."""
        if not self.has(name) or self._row[name] == "":
            return default
        return self.text(name)

    def identifier(self, name: str) -> str:
        """A text or an integer."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.problem(name, "text or an integer", got=value)
        return str(value)

    def number(self, name: str) -> float:
        """A finite number, or text that is one."""
        value = self.value(name)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.problem(name, "a number", got=value)
        return number

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, without blanks and repetitions; empty where the field is missing or null."""
        if not self.has(name):
            return ()
        found = []
        for number, value in enumerate(self.sequence(name)):
            text = _written(value)
            if text is None:
                raise self.problem(f"{name}[{number}]", "text or a number", got=value)
            found.append(text)
        return tuple(dict.fromkeys(text for text in found if text.strip()))

    def sequence(self, name: str) -> Sequence[Any]:
        """A list (or an array) as it is."""
        value = self.value(name)
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
            raise self.problem(name, "a list", got=value)
        return list(value)

    def images(self, name: str, *, root: str | Path | None = None) -> tuple[ImageSource, ...]:
        """One image or a list of images; none where the field is missing or null. ``root``: of relative paths."""
        if not self.has(name):
            return ()
        value = self._row[name]
        if isinstance(value, str | bytes | Mapping):
            return (image_source(value, where=f"{self.where}, field {name!r}", root=root),)
        return tuple(
            image_source(item, where=f"{self.where}, field '{name}[{number}]'", root=root)
            for number, item in enumerate(self.sequence(name))
        )

    def problem(self, name: str, needed: str, *, got: Any) -> DataError:
        """The error for a field that does not hold what is ``needed``."""
        rule = f"{self.where}, field {name!r} must be {needed}"
        return DataError(rule_message(rule, got=shown(got), cure="correct the row or drop it"))

    def refuse_misspelt(self, known: Collection[str]) -> None:
        """DataError for a field that is not known and looks like one that the row lacks; others are left alone.

        A null is like no field: tables give every row the fields of all.
        """
        absent = [name for name in known if not self.has(name)]
        for name in self._row:
            is_unknown = name not in known and self.has(name)
            near = get_close_matches(str(name), absent, n=1, cutoff=_SIMILAR) if is_unknown else []
            if near:
                rule = f"{self.where} must name its fields as the schema does"
                raise DataError(rule_message(rule, got=repr(name), cure=f"call it {near[0]!r}, or remove it"))


def _written(value: Any) -> str | None:
    """Text of a text or number; None for anything else, not-a-number included."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value)) if float(value).is_integer() else repr(value)
