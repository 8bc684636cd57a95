"""Safetensors checkpoints, single or sharded: headers first, then tensors one by one, whole or in part.

A tensor's bytes are mapped, not loaded, and unmapped with the tensor: reading a checkpoint of any size needs no more
memory than the tensors in use.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemo_axpo.errors import CheckpointError, rule_message

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


class CheckpointReader:
    """The tensors of a checkpoint directory, read when asked for."""

    def __init__(self, path: str | Path) -> None:
        """Reads the headers. CheckpointError names a file that is missing, truncated or otherwise unreadable."""
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        """Every tensor there is."""
        self._files: dict[str, Path] = {}
        for file in _weight_files(Path(path)):
            with _open(file) as tensors:
                for name in sorted(tensors.keys()):
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                    self._files[name] = file

    def read(self, name: str, *, part: tuple[slice, ...] = ()) -> Tensor:
        """One tensor, a view of the file; ``part`` has a slice for each of its first dimensions, () is all of it."""
        # The file is opened anew: a mapping that outlives the tensor would count everything read so far as memory.
        with _open(self._files[name]) as tensors:
            return tensors.get_slice(name)[part] if part else tensors.get_tensor(name)


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    """A safetensors file; CheckpointError for one that is not whole."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        rule, cure = (
            f"{file} must be a whole safetensors file",
            "it is truncated or corrupt, download or export it again",
        )
        raise CheckpointError(rule_message(rule, got=error, cure=cure)) from error


def _weight_files(path: Path) -> list[Path]:
    index = path / INDEX_FILE
    if not index.is_file():
        if not (path / SINGLE_FILE).is_file():
            rule = f"a checkpoint holds {SINGLE_FILE} or {INDEX_FILE}"
            cure = "give the directory of a safetensors checkpoint (pickled .bin files are not read)"
            raise CheckpointError(rule_message(rule, got=f"neither in {path}", cure=cure))
        return [path / SINGLE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            rule_message(f"{index} must hold a weight_map", got=repr(error), cure="download the checkpoint again")
        ) from error
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        rule = f"the {len(names)} files that {index.name} names must be there"
        got = f"{len(absent)} are not in {path}, first {absent[0]}"
        raise CheckpointError(rule_message(rule, got=got, cure="download the rest"))
    return [path / name for name in names]
