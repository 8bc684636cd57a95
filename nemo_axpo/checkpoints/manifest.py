"""``state.json``: the JSON values of a checkpoint, and size and SHA-256 of every other file in its directory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STATE_FILE = "state.json"
FORMAT = 2
"""Version of the layout; a reader refuses one it does not know."""
_HASH_CHUNK = 1 << 22

Manifest = dict[str, dict[str, Any]]
"""File name → ``num_bytes`` and ``sha256``."""


class Damaged(Exception):
    """A file of a checkpoint is not what was written; the message names it."""


def describe(directory: Path, names: Iterable[str]) -> Manifest:
    """Size and checksum of files as they lie in ``directory``, each synced to disk first."""
    return {name: _describe_file(directory / name) for name in names}


def write_state(directory: Path, *, step: int, files: Manifest, state: Mapping[str, Any]) -> None:
    """Writes ``state.json`` and syncs it and the directory to disk; last, as a reader trusts what it lists."""
    record = {"format": FORMAT, "step": step, "files": files, "state": dict(state)}
    path = directory / STATE_FILE
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def read_state(directory: Path) -> dict[str, Any]:
    """``state.json`` as it was written; :class:`Damaged` where it cannot be read or is of another version."""
    path = directory / STATE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        is_known = record["format"] == FORMAT
        if is_known:
            record["files"].items(), record["state"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} cannot be read ({error!r})") from None
    if not is_known:
        raise Damaged(f"{path} has format {record['format']}, this version reads {FORMAT}")
    return record


def verify_files(directory: Path, *, files: Manifest) -> None:
    """:class:`Damaged` names the first of ``files`` that is missing, truncated or altered."""
    for name, entry in sorted(files.items()):
        _verify_file(directory / name, entry=entry)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"num_bytes": path.stat().st_size, "sha256": sha256(path)}


def _verify_file(path: Path, *, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    num_bytes = path.stat().st_size
    if num_bytes != entry["num_bytes"]:
        raise Damaged(f"{path} has {num_bytes} bytes of {entry['num_bytes']}")
    if sha256(path) != entry["sha256"]:
        raise Damaged(f"{path} has been altered (its SHA-256 differs)")


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
