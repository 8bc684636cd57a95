"""Every key of a config with its values, default and meaning, as the schema says them."""

from __future__ import annotations

import fnmatch
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nemo_axpo.config.messages import sections_of

_NAMES: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true | false", Any: "anything"}
_ENTRY = {tuple: "[]", dict: ".NAME"}
_LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class KeyDoc:
    """One key that can be set."""

    key: str
    """Dotted; ``[]`` stands for an entry of a list, ``NAME`` for one that is named."""
    values: str
    """What it may be: ``integer ≥ 1``, ``hf | vllm``."""
    default: str
    """As YAML writes it, or ``required``."""
    meaning: str


@dataclass(frozen=True)
class SectionDoc:
    """Keys that stand together."""

    name: str
    """Dotted; empty for the keys at the top."""
    meaning: str
    keys: tuple[KeyDoc, ...]


def section_docs(model: type[BaseModel], *, name: str = "") -> list[SectionDoc]:
    """``model``'s own keys, then those of its sections, in the order of the schema; choices of a section are merged."""
    own, inner = [], []
    for field_name, field in model.model_fields.items():
        path = f"{name}.{field_name}" if name else field_name
        choices = sections_of(field)
        entry = _ENTRY.get(get_origin(field.annotation), "")
        if not choices or entry:
            own.append(_key_doc(path, field))
        inner += [section_docs(section, name=path + entry) for section in choices]
        if len(choices) > 1:
            inner[-len(choices) :] = [[_merged(field, [found[0] for found in inner[-len(choices) :]])]]
    return [SectionDoc(name, _one_line(model.__doc__), tuple(own)), *(found for docs in inner for found in docs)]


def matching(sections: Sequence[SectionDoc], pattern: str) -> list[SectionDoc]:
    """Sections with the keys that hold ``pattern``, or fit it where it has a ``*``; where no key does, with those whose
    meaning holds it. Case does not count."""
    wanted = pattern.lower()

    def fits(key: KeyDoc) -> bool:
        name = key.key.lower()
        return fnmatch.fnmatchcase(name, wanted) if "*" in wanted else wanted in name

    return _kept(sections, fits) or _kept(sections, lambda key: wanted in key.meaning.lower())


def _kept(sections: Sequence[SectionDoc], fits: Any) -> list[SectionDoc]:
    found = [SectionDoc(s.name, s.meaning, tuple(key for key in s.keys if fits(key))) for s in sections]
    return [section for section in found if section.keys]


def _merged(field: FieldInfo, choices: Sequence[SectionDoc]) -> SectionDoc:
    """One section of several that exclude each other: a key that not all have says which do."""
    tag, default = str(field.discriminator), field.default
    names = {id(choice): _key_of(choice, tag).default for choice in choices}
    keys: dict[str, KeyDoc] = {}
    for choice in choices:
        for key in choice.keys:
            keys.setdefault(key.key, key)
    tagged = f"{choices[0].name}.{tag}"
    keys[tagged] = KeyDoc(tagged, " | ".join(names.values()), getattr(default, tag), keys[tagged].meaning)
    for path, key in keys.items():
        having = [names[id(choice)] for choice in choices if any(key.key == path for key in choice.keys)]
        if len(having) < len(choices):
            keys[path] = KeyDoc(path, key.values, key.default, f"{key.meaning} Of {', '.join(having)} alone.")
    meaning = " ".join(f"{names[id(choice)]}: {choice.meaning}" for choice in choices)
    return SectionDoc(choices[0].name, meaning, tuple(keys.values()))


def _key_of(section: SectionDoc, name: str) -> KeyDoc:
    return next(key for key in section.keys if key.key.rpartition(".")[2] == name)


def _key_doc(path: str, field: FieldInfo) -> KeyDoc:
    default = "required" if field.is_required() else yaml_text(field.get_default(call_default_factory=True))
    values = _values(field.annotation, [*field.metadata])
    return KeyDoc(path, values, default, _one_line(field.description))


def yaml_text(value: Any) -> str:
    """A default as a config writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {yaml_text(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    return str(value)


def _values(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0], annotation.__metadata__)
    if origin in (Union, types.UnionType):
        return " | ".join("null" if part is type(None) else _values(part) for part in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        entries = [argument for argument in arguments if argument is not ...]
        text = ", ".join(_values(entry) for entry in entries)
        return f"[{text}, …]" if ... in arguments else f"[{text}]"
    if origin is not None and issubclass(origin, Mapping):
        return f"{{{_values(arguments[0])}: {_values(arguments[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{…}"
    return " ".join([_NAMES.get(annotation, str(annotation)), *_limits(metadata)])


def _limits(metadata: Sequence[Any]) -> Iterator[str]:
    for constraint in metadata:
        parts = constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]
        for part in parts:
            yield from (f"{sign} {getattr(part, name)}" for name, sign in _LIMITS.items() if hasattr(part, name))
            if getattr(part, "pattern", None) is not None:
                yield f"like {part.pattern}"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").replace("``", "").split())
