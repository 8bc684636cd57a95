"""Training checkpoints that are either whole or absent, written and read by all ranks of a job together.

    checkpoints/step_00100/
        state.json                          JSON values; size and SHA-256 of every other file
        __0_0.distcp  .metadata  …          sharded tensors (see sharded_files.py): any layout loads them
        random_00000.safetensors  …         random states of each rank

A checkpoint is written beside its place, synced to disk, and renamed into it when every rank is done; only then are older
ones removed. So a crash or a full disk on any rank at any moment leaves the last good checkpoint usable. The directory
is one that all ranks see.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_axpo.checkpoints import manifest, publishing
from nemo_axpo.checkpoints.manifest import Damaged
from nemo_axpo.checkpoints.ranks import RankError, Ranks
from nemo_axpo.errors import CheckpointError, rule_message

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedBase

    from nemo_axpo.checkpoints.sharded_files import ShardedSave

logger = logging.getLogger(__name__)

RESCUE_TIMEOUT_S = 60.0
"""How long a rank that an error ends waits for the others: torchrun ends these only when it is gone."""
_WRITE_ERRORS = (OSError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after ``step`` steps, its files verified."""

    step: int
    path: Path
    state: dict[str, Any]
    """JSON values."""
    ranks: Ranks
    """Of the job that reads it."""

    def load_tensors(self, tensors: Mapping[str, ShardedBase], *, is_part: bool = False) -> dict[str, Tensor]:
        """This rank's part of ``tensors``, by their keys; every rank calls it.

        Where a sharded tensor has data, that is what the files are read into. CheckpointError on all ranks where names or
        shapes are not those stored; with ``is_part`` more may be stored.
        """
        from nemo_axpo.checkpoints import sharded_files  # megatron takes seconds to import

        return sharded_files.load_tensors(tensors, self.path, ranks=self.ranks, is_part=is_part)

    def random_states(self) -> dict[str, Tensor]:
        """What this rank saved as its random states; empty where it did not, or where there were more or fewer ranks."""
        files = sorted(self.path.glob("random_*.safetensors"))
        return load_file(files[self.ranks.index]) if len(files) == self.ranks.count else {}


class CheckpointStore:
    """The checkpoints of one run, newest ``keep`` of them. Every rank of the job makes every call."""

    def __init__(self, directory: str | Path, *, keep: int = 2, is_async: bool = False, timeout_s: float = 1800.0) -> None:
        """``is_async``: :meth:`save` returns when the tensors are copied; threads write them. ``timeout_s``: longest wait
        of a rank that has little to write for the slowest one."""
        assert keep >= 1, f"at least the newest checkpoint is kept, got keep={keep}"
        self._directory, self._keep, self._is_async = Path(directory), keep, is_async
        self._ranks = Ranks(timeout_s=timeout_s)
        self._pending: _PendingSave | None = None

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint directory, ascending; contents are judged by :meth:`read`.

        As rank 0 sees them: other nodes may remember an older listing, and ranks that disagree would resume apart.
        """
        return self._ranks.on_main(lambda: publishing.published_steps(self._directory), errors=())

    def path_of(self, step: int) -> Path:
        """Directory of the checkpoint after ``step`` steps."""
        return publishing.path_of(self._directory, step)

    def save(
        self,
        step: int,
        *,
        tensors: Mapping[str, ShardedBase],
        state: Mapping[str, Any],
        random_states: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes a checkpoint and then removes the oldest; an asynchronous one is published by :meth:`finish`.

        ``tensors``: this rank's parts. ``state``: JSON values, of which those of rank 0 are kept. ``random_states``: this
        rank's own. CheckpointError on all ranks where the disk of any is full or fails: nothing of the new checkpoint is
        left, the old ones are untouched.
        """
        from nemo_axpo.checkpoints.sharded_files import ShardedSave

        self.finish()
        frozen = json.loads(json.dumps(dict(state), allow_nan=False))
        with self._cleaning_up(step):
            self._ranks.on_main(lambda: publishing.start_staging(self._directory, step), errors=_WRITE_ERRORS)
            staging = publishing.staging_path(self._directory, step)
            others = self._ranks.together(lambda: self._write_random(staging, random_states), errors=_WRITE_ERRORS)
            save = ShardedSave(tensors, staging, copies=self._is_async, ranks=self._ranks)
            self._pending = _PendingSave(step, staging, frozen, save)
            (save.start if self._is_async else save.write)(other_files=others[self._ranks.index])
        if not self._is_async:
            self.finish()

    def finish(self, *, wait: bool = True) -> int | None:
        """Publishes an asynchronous save; its step, None where there is none or, without ``wait``, not yet.

        CheckpointError as of :meth:`save`.
        """
        pending = self._pending
        if pending is None or not (wait or pending.save.is_written()):
            return None
        self._pending = None
        with self._cleaning_up(pending.step):
            files = pending.save.finish()
            self._ranks.on_main(lambda: self._publish(pending, files=files), errors=_WRITE_ERRORS)
        return pending.step

    def rescue(self, *, timeout_s: float = RESCUE_TIMEOUT_S) -> int | None:
        """Publishes an asynchronous save before an error ends the job; its step, None where there is none to publish.

        For a ``finally``: it raises nothing of its own. An error that ends one rank alone leaves the others in the middle of a
        step; then, after ``timeout_s``, the save is given up and the checkpoint before stays the newest.
        """
        if self._pending is None:
            return None
        step = self._pending.step
        if not self._ranks.are_all_here(f"rescue {self.path_of(step)}", timeout_s=timeout_s):
            logger.warning("the checkpoint of step %d is lost: not every rank is there to finish it", step)
            return None
        try:
            return self.finish()
        except (CheckpointError, RuntimeError) as error:  # the latter of gloo
            logger.warning("the checkpoint of step %d is lost: %s", step, error)
            return None

    def read(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step`` (default: the newest), every byte of it verified; each rank reads a share.

        CheckpointError where there is none, or where a file is missing, truncated or altered; the message names the file
        and the previous good checkpoint.
        """
        wanted = self._chosen(step)
        try:
            return self._verified(wanted)
        except (Damaged, RankError) as damage:
            raise CheckpointError(
                rule_message("a checkpoint must be what was written", got=damage, cure=self._cure(wanted))
            ) from None

    def _chosen(self, step: int | None) -> int:
        steps = self.steps()
        wanted = step if step is not None else (steps[-1] if steps else None)
        if wanted not in steps:
            have = ", ".join(map(str, steps)) or "none"
            rule = f"{self._directory} must hold the checkpoint asked for"
            cure = "choose one of these, or start without --resume"
            raise CheckpointError(rule_message(rule, got=f"step {wanted}, there are: {have}", cure=cure))
        return wanted

    def _verified(self, step: int) -> Checkpoint:
        path = self.path_of(step)
        record = self._ranks.on_main(lambda: manifest.read_state(path), errors=(Damaged,))
        share = dict(sorted(record["files"].items())[self._ranks.index :: self._ranks.count])
        self._ranks.together(lambda: manifest.verify_files(path, files=share), errors=(Damaged,))
        return Checkpoint(step, path, record["state"], self._ranks)

    def _cure(self, damaged_step: int) -> str:
        good = self._newest_good(before=damaged_step)
        if good is None:
            return "there is no earlier good checkpoint; start again in another --output-dir"
        return f"remove {self.path_of(damaged_step)} to continue from the good {self.path_of(good)}"

    def _newest_good(self, *, before: int) -> int | None:
        """As rank 0 finds it; ranks wait for each other here, so none may look for itself."""
        return self._ranks.on_main(lambda: self._find_good(before=before), errors=())

    def _find_good(self, *, before: int) -> int | None:
        for step in reversed([step for step in publishing.published_steps(self._directory) if step < before]):
            with contextlib.suppress(Damaged):
                path = self.path_of(step)
                manifest.verify_files(path, files=manifest.read_state(path)["files"])
                return step
        return None

    def _write_random(self, staging: Path, states: Mapping[str, Tensor] | None) -> tuple[str, ...]:
        """This rank's file of random states; its name, if there is any."""
        if not states:
            return ()
        name = _random_file(self._ranks.index)
        save_file({key: tensor.contiguous() for key, tensor in states.items()}, staging / name)
        return (name,)

    def _publish(self, pending: _PendingSave, *, files: manifest.Manifest) -> None:
        manifest.write_state(pending.staging, step=pending.step, files=files, state=pending.state)
        publishing.publish(self._directory, pending.step)
        publishing.remove_old(self._directory, keep=self._keep)

    @contextlib.contextmanager
    def _cleaning_up(self, step: int) -> Any:
        """Removes what was written where any rank fails, and says which checkpoint is good."""
        try:
            yield
        except RankError as error:
            self._pending = None
            if self._ranks.index == 0:
                shutil.rmtree(publishing.staging_path(self._directory, step), ignore_errors=True)
            rule = "a checkpoint needs a disk with room that can be written"
            cure = f"free some space and resume from {self._name_of_newest()}"
            raise CheckpointError(
                rule_message(rule, got=f"{error} while saving {self.path_of(step)}", cure=cure)
            ) from error

    def _name_of_newest(self) -> str:
        steps = self.steps()
        return f"the last good checkpoint {self.path_of(steps[-1])}" if steps else "the start (there is none yet)"


@dataclass(frozen=True)
class _PendingSave:
    step: int
    staging: Path
    state: dict[str, Any]
    save: ShardedSave


def _random_file(rank: int) -> str:
    return f"random_{rank:05d}.safetensors"
