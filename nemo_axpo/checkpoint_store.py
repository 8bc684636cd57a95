"""Training checkpoints that are either whole or absent.

    checkpoints/step_00100/tensors.safetensors     weights, optimizer, random states: anything that is a tensor
    checkpoints/step_00100/state.json              the rest as JSON, and size and SHA-256 of the tensor file

A checkpoint is written beside its place, synced to disk and renamed into it; only then are older ones removed. So a crash or a
full disk at any moment leaves the last good checkpoint usable. Nothing is pickled: loading runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_axpo.errors import CheckpointError, rule_message

TENSORS_FILE, STATE_FILE = "tensors.safetensors", "state.json"
FORMAT = 1
"""Version of the layout; a reader refuses one it does not know."""
_STEP_DIRECTORY = re.compile(r"step_(\d{5,})")
_HASH_CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after ``step`` steps."""

    step: int
    tensors: dict[str, Tensor]
    """On the CPU."""
    state: dict[str, Any]
    """JSON values."""


class CheckpointStore:
    """The checkpoints of one run, newest ``keep`` of them."""

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        assert keep >= 1, f"at least the newest checkpoint is kept, got keep={keep}"
        self._directory = Path(directory)
        self._keep = keep

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint directory, ascending; contents are judged by :meth:`load`."""
        if not self._directory.is_dir():
            return []
        matches = (_STEP_DIRECTORY.fullmatch(path.name) for path in self._directory.iterdir() if path.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def path_of(self, step: int) -> Path:
        """Directory of the checkpoint after ``step`` steps."""
        return self._directory / f"step_{step:05d}"

    def save(self, step: int, *, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and then removes the oldest; returns its directory.

        CheckpointError where the disk is full or fails: nothing of the new checkpoint is left, the old ones are untouched.
        """
        staging = self._directory / f".step_{step:05d}.partial"
        try:
            self._clear_partial()
            staging.mkdir(parents=True)
            _write(staging, step=step, tensors=tensors, state=state)
            self._publish(staging, step=step)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise CheckpointError(
                rule_message(
                    "a checkpoint needs a disk with room that can be written",
                    got=f"{error} while saving {self.path_of(step)}",
                    cure=f"free some space and resume from {self._name_of_newest()}",
                )
            ) from error
        self._remove_old()
        return self.path_of(step)

    def load(self, step: int | None = None, *, prefix: str = "") -> Checkpoint:
        """Reads the checkpoint of ``step`` (default: the newest) and verifies every byte of it.

        ``prefix``: only tensors whose names begin with it, so that weights alone need no room for an optimizer's state.
        CheckpointError where there is none, or where a file is missing, truncated or altered; the message names the file
        and the previous good checkpoint.
        """
        steps = self.steps()
        wanted = step if step is not None else (steps[-1] if steps else None)
        if wanted not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                rule_message(
                    f"{self._directory} must hold the checkpoint asked for",
                    got=f"step {wanted}, there are: {have}",
                    cure="choose one of these, or start without --resume",
                )
            )
        try:
            return _read(self.path_of(wanted), step=wanted, prefix=prefix)
        except _Damaged as damage:
            raise CheckpointError(
                rule_message("a checkpoint must be what was written", got=damage, cure=self._cure(wanted))
            ) from None

    def _cure(self, damaged_step: int) -> str:
        good = self._newest_good(before=damaged_step)
        if good is None:
            return "there is no earlier good checkpoint; start again in another --output-dir"
        return f"remove {self.path_of(damaged_step)} to continue from the good {self.path_of(good)}"

    def _newest_good(self, *, before: int) -> int | None:
        for step in reversed([step for step in self.steps() if step < before]):
            with contextlib.suppress(_Damaged):
                _verified_state(self.path_of(step))
                return step
        return None

    def _publish(self, staging: Path, *, step: int) -> None:
        """Renames into place; a checkpoint of the same step (from before a resume) is moved aside first."""
        target = self.path_of(step)
        aside = self._directory / f".step_{step:05d}.replaced"
        if target.exists():
            os.rename(target, aside)
        os.rename(staging, target)
        _sync_directory(self._directory)
        shutil.rmtree(aside, ignore_errors=True)

    def _clear_partial(self) -> None:
        """Leftovers of a killed process. A replaced checkpoint whose successor never arrived goes back to its place."""
        for path in self._directory.glob(".step_*.replaced"):
            target = self._directory / path.name.removeprefix(".").removesuffix(".replaced")
            shutil.rmtree(path) if target.exists() else os.rename(path, target)
        for path in self._directory.glob(".step_*.partial"):
            shutil.rmtree(path)

    def _remove_old(self) -> None:
        for step in self.steps()[: -self._keep]:
            shutil.rmtree(self.path_of(step))

    def _name_of_newest(self) -> str:
        steps = self.steps()
        return f"the last good checkpoint {self.path_of(steps[-1])}" if steps else "the start (there is none yet)"


class _Damaged(Exception):
    """A file of a checkpoint is not what was written; the message names it."""


def _write(directory: Path, *, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    tensor_path = directory / TENSORS_FILE
    save_file(dict(_storable(tensors)), tensor_path)
    files = {TENSORS_FILE: {"num_bytes": tensor_path.stat().st_size, "sha256": _sha256(tensor_path)}}
    record = {"format": FORMAT, "step": step, "files": files, "state": dict(state)}
    (directory / STATE_FILE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for name in (TENSORS_FILE, STATE_FILE):
        with (directory / name).open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(directory)


def _storable(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """CPU copies where needed; tied tensors become separate ones, as safetensors stores no sharing."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        pointer = stored.untyped_storage().data_ptr()
        yield name, stored.clone() if pointer in seen else stored
        seen.add(pointer)


def _read(directory: Path, *, step: int, prefix: str) -> Checkpoint:
    record = _verified_state(directory)
    with safe_open(directory / TENSORS_FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys()) if name.startswith(prefix)}
    return Checkpoint(step, tensors, record["state"])


def _verified_state(directory: Path) -> dict[str, Any]:
    """``state.json`` after the tensor file was found to be as it says; _Damaged otherwise."""
    path = directory / STATE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known, entries = record["format"] == FORMAT, record["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"{path} cannot be read ({error!r})") from None
    if not known:
        raise _Damaged(f"{path} has format {record['format']}, this version reads {FORMAT}")
    for name, entry in entries:
        _verify_file(directory / name, entry=entry)
    return record


def _verify_file(path: Path, *, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise _Damaged(f"{path} is missing")
    num_bytes = path.stat().st_size
    if num_bytes != entry["num_bytes"]:
        raise _Damaged(f"{path} has {num_bytes} bytes of {entry['num_bytes']}")
    if _sha256(path) != entry["sha256"]:
        raise _Damaged(f"{path} has been altered (its SHA-256 differs)")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
