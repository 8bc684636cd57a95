"""Arrow tables as Python rows; values that ``datasets`` keeps as JSON text, because their types differ, are read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow

_Decode = Callable[[Any], Any]


def table_rows(table: pyarrow.Table) -> list[dict[str, Any]]:
    """One dict a row; images stay ``{"bytes", "path"}``."""
    rows = table.to_pylist()
    for field in table.schema:
        decode = _decoder(field.type)
        if decode is not None:
            for row in rows:
                row[field.name] = decode(row[field.name])
    return rows


def _decoder(kind: pyarrow.DataType) -> _Decode | None:
    """What reads JSON text inside values of an Arrow type; None where there is none."""
    if isinstance(kind, pyarrow.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        item = _decoder(kind.value_type)
        return item and (lambda value: None if value is None else [item(one) for one in value])
    if pyarrow.types.is_struct(kind):
        return _struct_decoder(kind)
    return None


def _struct_decoder(kind: pyarrow.StructType) -> _Decode | None:
    members = {field.name: decode for field in kind if (decode := _decoder(field.type)) is not None}
    if not members:
        return None

    def decode_struct(value: Any) -> Any:
        if value is None:
            return None
        return {name: members[name](one) if name in members else one for name, one in value.items()}

    return decode_struct
