"""Readers by name: the shipped ones, and ``module:function`` or ``path/to/file.py:function`` of one's own."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_axpo.data.questions import QuestionRecord, read_record
from nemo_axpo.data.readers import (
    dynamath,
    fvqa,
    hr_bench,
    hr_mmsearch,
    math_vr,
    mathvision,
    mmfinereason,
    mmsearch,
    pyvision,
    virl39k,
    visual_probe,
    vstar,
)
from nemo_axpo.data.readers.base import Reader, RowPlace
from nemo_axpo.errors import ConfigError, rule_message


def read_schema(row: Mapping[str, Any], place: RowPlace) -> QuestionRecord:
    """A row of the question schema itself."""
    return read_record(row, where=place.where, image_root=place.image_root, source=place.source)


READERS: Mapping[str, Reader] = {
    "schema": read_schema,
    "virl39k": virl39k.read,
    "fvqa": fvqa.read,
    "pyvision": pyvision.read,
    "mmfinereason": mmfinereason.read,
    "mmfinereason_hard": mmfinereason.read_hard,
    "mathvision": mathvision.read,
    "dynamath": dynamath.read,
    "math_vr": math_vr.read,
    "math_vr_text": math_vr.read_text,
    "math_vr_multimodal": math_vr.read_multimodal,
    "vstar": vstar.read,
    "visual_probe": visual_probe.read,
    "hr_bench": hr_bench.read,
    "hr_bench_cycles": hr_bench.read_cycles,
    "hr_mmsearch": hr_mmsearch.read,
    "mmsearch": mmsearch.read,
}


def get_reader(name: str) -> Reader:
    """ConfigError for a name that is no reader's, and for a module that cannot be loaded."""
    if name in READERS:
        return READERS[name]
    where, colon, attribute = name.rpartition(":")
    if not colon:
        rule = f"a reader must be one of {', '.join(READERS)}, module:function or path/to/file.py:function"
        raise ConfigError(rule_message(rule, got=repr(name), cure="correct the name"))
    reader = getattr(_load(where), attribute, None)
    if not callable(reader):
        rule = f"{where} must define the reader {attribute!r}"
        raise ConfigError(rule_message(rule, got="no such function", cure="correct the name after the colon"))
    return reader


def _load(where: str) -> ModuleType:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            cure = "install it, or give the path of its file"
            raise ConfigError(rule_message("a reader's module must be importable", got=error, cure=cure)) from error
    path = Path(where)
    if not path.is_file():
        raise ConfigError(rule_message("a reader's file must exist", got=path, cure="correct its path"))
    spec = importlib.util.spec_from_file_location(f"nemo_axpo_reader_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
