"""What a user reads when a config does not fit the schema: the key, the value, and the cure with close matches."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nemo_axpo.config.schema import Config
from nemo_axpo.errors import rule_message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean a or b?``, or the empty string where nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(matches)}?" if matches else ""


def config_fields(model: type[BaseModel] = Config, *, prefix: str = "") -> dict[str, FieldInfo]:
    """Every field by dotted path, sections included; of a choice of sections, the fields of all of them."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        fields.setdefault(prefix + name, field)
        for section in sections_of(field):
            for path, nested in config_fields(section, prefix=f"{prefix}{name}.").items():
                fields.setdefault(path, nested)
    return fields


def sections_of(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """The section classes a field can hold: none for a plain value, several for a choice such as ``algorithm``."""
    candidates = get_args(field.annotation) or (field.annotation,)
    return tuple(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))


def describe_validation_error(error: ValidationError, *, values: Mapping[str, Any]) -> str:
    """One line per offending key: rule, value, cure."""
    return "\n".join(_describe(problem, values=values) for problem in error.errors())


def _describe(problem: Mapping[str, Any], *, values: Mapping[str, Any]) -> str:
    path = _path_of(problem["loc"], values=values)
    if problem["type"] == "extra_forbidden":
        return rule_message(f"unknown config key {path}", got=repr(problem["input"]), cure=_cure_for_unknown(path))
    rule = f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    return rule_message(rule, got=repr(problem["input"]), cure=_cure_for_value(path))


def _path_of(loc: Sequence[str | int], *, values: Mapping[str, Any]) -> str:
    """Dotted path without the tag that a choice of sections puts into the location (``algorithm.axpo.num_rollouts``)."""
    parts, node = [], values
    for index, part in enumerate(loc):
        is_tag = index == 1 and isinstance(node, Mapping) and node.get("name") == part and part not in node
        if not is_tag:
            parts.append(str(part))
            node = node.get(part) if isinstance(node, Mapping) else None
    return ".".join(parts)


def _cure_for_unknown(path: str) -> str:
    known = config_fields()
    if path in known:
        return "it belongs to another choice of this section; drop it or choose that one"
    section, _, leaf = path.rpartition(".")
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    prefix = f"{section}." if section else ""
    close = [prefix + name for name in difflib.get_close_matches(leaf, siblings, n=3, cutoff=0.6)]
    close = close or [key for key in known if key.rpartition(".")[2] == leaf]
    close = close or ([] if section in known else difflib.get_close_matches(path, list(known), n=3, cutoff=0.6))
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"the keys of {section or 'the config'} are: {', '.join(siblings)}"


def _cure_for_value(path: str) -> str:
    field = config_fields().get(path)
    if field is None or sections_of(field):
        return "see nemo_axpo/config/sections for what it may hold"
    description = f" ({field.description.strip()})" if field.description else ""
    return f"the default is {field.default!r}{description}"
