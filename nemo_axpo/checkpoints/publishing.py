"""Directories of checkpoints that become visible by one rename, so that each is whole or absent.

step_00100/             a checkpoint
.step_00110.partial/    being written, or left by a killed process
.step_00110.replaced/   an older checkpoint of the same step, for the moment between two renames
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from nemo_axpo.checkpoints.manifest import sync_directory

_STEP_DIRECTORY = re.compile(r"step_(\d{5,})")


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return directory / f"step_{step:05d}"


def published_steps(directory: Path) -> list[int]:
    """Steps with a whole checkpoint, ascending; what is in its files is judged elsewhere."""
    if not directory.is_dir():
        return []
    matches = (_STEP_DIRECTORY.fullmatch(path.name) for path in directory.iterdir() if path.is_dir())
    return sorted(int(match.group(1)) for match in matches if match)


def start_staging(directory: Path, step: int) -> Path:
    """An empty directory in which a checkpoint may be written; clears what a killed process left."""
    _clear_leftovers(directory)
    staging = staging_path(directory, step)
    staging.mkdir(parents=True)
    return staging


def staging_path(directory: Path, step: int) -> Path:
    """Where :func:`start_staging` makes room, also for the ranks that only write there."""
    return directory / f".step_{step:05d}.partial"


def publish(directory: Path, step: int) -> None:
    """Renames what was staged into its place; a checkpoint of the same step is moved aside first."""
    target, aside = path_of(directory, step), directory / f".step_{step:05d}.replaced"
    if target.exists():
        os.rename(target, aside)
    os.rename(staging_path(directory, step), target)
    sync_directory(directory)
    shutil.rmtree(aside, ignore_errors=True)


def remove_old(directory: Path, *, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints."""
    for step in published_steps(directory)[:-keep]:
        shutil.rmtree(path_of(directory, step))


def _clear_leftovers(directory: Path) -> None:
    """A replaced checkpoint whose successor never arrived goes back to its place."""
    for path in directory.glob(".step_*.replaced"):
        target = directory / path.name.removeprefix(".").removesuffix(".replaced")
        shutil.rmtree(path) if target.exists() else os.rename(path, target)
    for path in directory.glob(".step_*.partial"):
        shutil.rmtree(path)
