"""Which kind of checkpoint a path is, and what makes it usable where it is not a Hugging Face directory.

    ckpt/latest_checkpointed_iteration.txt   ckpt/iter_0001000/{.metadata, metadata.json, *.distcp, run_config.yaml}

is what Megatron-Bridge writes (torch_dist) and :mod:`nemo_axpo.importing.convert` reads. Only names are looked at here, and
JSON; nothing is unpickled.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from nemo_axpo.errors import CheckpointError, rule_message

RUN_CONFIG = "run_config.yaml"
_TRACKER, _INDEX, _FORMAT = "latest_checkpointed_iteration.txt", ".metadata", "metadata.json"
_ITERATION = re.compile(r"iter_(\d{7,})")
_IMPORT = "`nemo-axpo import {path} --model-files HF_DIR --output DIR` makes a Hugging Face checkpoint of it"
_EXPORT = "`nemo-axpo export {path} --output DIR` makes a Hugging Face checkpoint of it"
_AGAIN = (
    "save it again as torch_dist where it was trained (--ckpt-format torch_dist, or --ckpt-convert-format torch_dist)"
)
_NO_QWEN3_VL = (
    "no NeMo with this format has Qwen3-VL (its collections end at Qwen2.5-VL): use a checkpoint of Megatron-Bridge, or a "
    "Hugging Face directory"
)


@dataclass(frozen=True)
class _Kind:
    """A kind of checkpoint that is not a Hugging Face directory."""

    what: str
    cure: str
    directory: Path | None = None
    """Where the index lies, for the kind that is imported."""


def torch_dist_directory(path: Path) -> Path:
    """The directory with the index: ``path``, or its newest iteration. CheckpointError, with a cure, for any other path."""
    kind = _kind(path)
    if kind is not None and kind.directory is not None:
        return kind.directory
    rule = (
        "a Megatron checkpoint that can be imported is a torch_dist directory of Megatron-Bridge (iter_… or its parent)"
    )
    if kind is not None:
        raise CheckpointError(rule_message(rule, got=f"{path}, {kind.what}", cure=kind.cure))
    is_hf, cure = (path / "config.json").is_file(), "give the directory of a checkpoint"
    got = f"{path}, a Hugging Face directory" if is_hf else path if path.exists() else f"{path}, which is not there"
    raise CheckpointError(rule_message(rule, got=got, cure="use it as it is, as model.path" if is_hf else cure))


def cure_of(path: Path) -> tuple[str, str] | None:
    """What ``path`` is and how a Hugging Face directory is made of it; None where it is no checkpoint that is known."""
    kind = _kind(path)
    return None if kind is None else (kind.what, kind.cure)


def _kind(path: Path) -> _Kind | None:
    if path.is_file():
        return _kind_of_file(path)
    if not path.is_dir():
        return None
    return _kind_of_run(path) or _kind_of_nemo(path) or _kind_of_iteration(_iteration(path), path)


def _kind_of_file(path: Path) -> _Kind | None:
    if path.suffix == ".nemo":
        return _Kind("a .nemo archive", _NO_QWEN3_VL)
    if path.suffix in (".pt", ".pth", ".ckpt", ".distcp"):
        return _Kind("a single file", f"give its directory; of a pickled checkpoint, {_AGAIN}")
    return None


def _kind_of_run(path: Path) -> _Kind | None:
    """A run of our own, or one of its checkpoints."""
    if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        return _Kind("a run directory", _EXPORT.format(path=path))
    if (path / "state.json").is_file() and (path / _INDEX).is_file():
        step = int(match[1]) if (match := re.fullmatch(r"step_(\d+)", path.name)) else 0
        return _Kind("a checkpoint of a run", _EXPORT.format(path=f"{path.parent.parent} --step {step}"))
    return None


def _kind_of_nemo(path: Path) -> _Kind | None:
    if (path / "weights").is_dir() and (path / "context").is_dir():
        return _Kind("a NeMo 2.0 checkpoint", _NO_QWEN3_VL)
    if (path / "model_config.yaml").is_file() and (path / "model_weights").exists():
        return _Kind("an unpacked .nemo archive", _NO_QWEN3_VL)
    return None


def _kind_of_iteration(directory: Path, path: Path) -> _Kind | None:
    backend = _backend(directory)
    if (directory / _INDEX).is_file() and backend == "torch_dist":
        return _Kind("a Megatron checkpoint", _IMPORT.format(path=path), directory)
    if any(directory.glob("mp_rank_*")):
        return _Kind("a legacy Megatron checkpoint (mp_rank_…, pickled modules)", _AGAIN)
    if backend == "zarr" or any(directory.glob("*/.zarray")):
        return _Kind("a Megatron checkpoint in zarr, which megatron-core no longer reads", _AGAIN)
    if (directory / _INDEX).is_file():
        return _Kind("a checkpoint of Megatron-FSDP or another writer (no metadata.json of torch_dist)", _AGAIN)
    if directory != path:
        return _Kind(f"a Megatron directory whose {directory.name} is not whole", "copy it again, all its files")
    return None


def _iteration(path: Path) -> Path:
    """The directory of the iteration that the tracker file names, else the newest; ``path`` where there is none."""
    tracker = path / _TRACKER
    if tracker.is_file():
        said = tracker.read_text(encoding="utf-8", errors="replace").strip()
        return path / (f"iter_{int(said):07d}" if said.isdecimal() else "release")
    found = {int(match[1]): entry for entry in path.iterdir() if (match := _ITERATION.fullmatch(entry.name))}
    return found[max(found)] if found else path


def _backend(directory: Path) -> str | None:
    """``sharded_backend`` of megatron's metadata.json."""
    try:
        return json.loads((directory / _FORMAT).read_text(encoding="utf-8"))["sharded_backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
