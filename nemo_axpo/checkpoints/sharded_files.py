"""Files of sharded tensors in the format of ``megatron.core.dist_checkpointing`` (torch_dist), which also reads them.

    __<rank>_0.distcp   the shards one rank holds, tensor by tensor      metadata.json   megatron's name of the format
    .metadata           which shard of which tensor lies where           common.pt       empty: our values are JSON

Planning and resharding are megatron's. Its writer is not used: it forks a process that outlives a killed trainer and
holds its locks, needs a manager process for the results, and a failing rank 0 leaves the others waiting. Here a rank
writes its file itself, in place or in a thread of its own, and the ranks agree on the outcome before anyone goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_axpo.actors import cpu_shim

cpu_shim.install()  # before megatron is imported below

# isort: split
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from nemo_axpo.checkpoints.index_file import INDEX_FILE, read_index
from nemo_axpo.checkpoints.manifest import Manifest, describe
from nemo_axpo.checkpoints.ranks import Ranks
from nemo_axpo.errors import CheckpointError, rule_message

cpu_shim.install()  # for the modules imported just now

logger = logging.getLogger(__name__)

WRITE_ERRORS = (OSError, RuntimeError)
"""A full or failing disk; torch.save reports it as either."""
_SAME_CONFIG = "resume with the configuration that wrote it"
_COMMON_FILE, _FORMAT_FILE = "common.pt", "metadata.json"


class ShardedSave:
    """One save on its way: planned when it is made, then written, then finished. Every rank does the same."""

    def __init__(self, tensors: Mapping[str, ShardedBase], directory: Path, *, copies: bool, ranks: Ranks) -> None:
        """Plans the files. ``copies``: the tensors may change before they are written, so keep copies of them.

        Copies live on the CPU. Errors of the plan (a shard that no rank or several ranks hold) are megatron's.
        """
        self._directory, self._ranks = directory, ranks
        sharded, common = save_preprocess(dict(tensors))
        assert not common, f"only sharded tensors are stored, got {sorted(common)}"
        by_key, _, _ = torch_strategy._replace_state_dict_keys_with_sharded_keys(sharded, True)
        planner = torch_strategy.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._writer = _TensorWriter(str(directory), copies=copies)
        (_, self._metadata, _), *_ = save_state_dict_async_plan(
            torch_strategy.mcore_to_pyt_state_dict(by_key), self._writer, planner=planner
        )
        self._thread: threading.Thread | None = None
        self._files: Manifest = {}
        self._error: Exception | None = None

    def write(self, *, other_files: tuple[str, ...] = ()) -> None:
        """Writes this rank's shards; ``other_files``: what else this rank has put into the directory.

        An error is kept for :meth:`finish`, in which all ranks learn of it: any error, because one that ended the thread
        unseen would let a checkpoint be published without this rank's file.
        """
        try:
            self._files = describe(self._directory, (*self._writer.write(), *other_files))
        except Exception as error:
            if not isinstance(error, WRITE_ERRORS):
                logger.exception("writing %s failed, and not for its disk", self._directory)
            self._error = error

    def start(self, *, other_files: tuple[str, ...] = ()) -> None:
        """:meth:`write` in a thread of its own, which a killed process takes with it."""
        self._thread = threading.Thread(target=self.write, kwargs={"other_files": other_files}, daemon=True)
        self._thread.start()

    def is_written(self) -> bool:
        """Whether :meth:`finish` would not wait on any rank."""
        is_running = self._thread is not None and self._thread.is_alive()
        return not any(self._ranks.exchange(is_running))

    def finish(self) -> Manifest:
        """Waits for all ranks and writes the index; every file of the checkpoint, on every rank.

        :class:`RankError` on all ranks where one of them failed.
        """
        if self._thread is not None:
            self._thread.join()
        error = None if self._error is None else _text(self._error)
        outcomes = self._ranks.exchange((self._files, self._writer.results, error))
        self._ranks.raise_first([text for *_, text in outcomes], cause=self._error)
        files = {name: entry for part, _, _ in outcomes for name, entry in part.items()}
        index = self._ranks.on_main(
            lambda: self._write_index([results for _, results, _ in outcomes]), errors=WRITE_ERRORS
        )
        return files | index

    def _write_index(self, results: list[list[WriteResult]]) -> Manifest:
        del self._metadata.all_local_plans  # megatron's cache for a later save
        self._writer.finish(self._metadata, results)
        torch.save({}, self._directory / _COMMON_FILE)
        save_config(CheckpointingConfig("torch_dist", 1), str(self._directory))
        return describe(self._directory, (INDEX_FILE, _COMMON_FILE, _FORMAT_FILE))


def _text(error: Exception) -> str:
    """What a failing disk says, as it is; of anything else the kind too."""
    return str(error) or repr(error) if isinstance(error, WRITE_ERRORS) else repr(error)


def load_tensors(
    tensors: Mapping[str, ShardedBase], directory: Path, *, ranks: Ranks, is_part: bool = False
) -> dict[str, Tensor]:
    """This rank's part of every tensor named by ``tensors``, from whichever layout it was written by.

    Verify the checksums of ``directory`` first. Where a sharded tensor has data, that is what the file is read into.
    CheckpointError on all ranks where names or shapes differ from what is stored; with ``is_part`` more may be stored.
    :class:`~nemo_axpo.checkpoints.manifest.Damaged` for an index that is not one.
    """
    read_index(directory)  # refuses one that is not an index; megatron reads it again below
    wanted = {part.key: tuple(part.global_shape) for sharded in tensors.values() for part in _parts(sharded)}
    _check_fit({name: shape for part in ranks.exchange(wanted) for name, shape in part.items()}, directory, is_part)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`load_state_dict` is deprecated", category=FutureWarning)
        return dist_checkpointing.load(dict(tensors), str(directory))


def _parts(sharded: ShardedBase) -> Sequence[ShardedTensor]:
    """The tensors of the files that make up a sharded one: the two halves of a gated projection, or itself."""
    return sharded.build() if isinstance(sharded, ShardedTensorFactory) else [sharded]


def _check_fit(wanted: Mapping[str, tuple[int, ...]], directory: Path, is_part: bool) -> None:
    metadata = dist_checkpointing.load_tensors_metadata(str(directory))
    stored = {name: tuple(tensor.global_shape) for name, tensor in metadata.items()}
    missing, unknown = sorted(wanted.keys() - stored), [] if is_part else sorted(stored.keys() - wanted)
    if missing or unknown:
        rule = "a training checkpoint holds exactly the actor's tensors"
        got = f"{len(missing)} missing (first {missing[:1]}) and {len(unknown)} unknown (first {unknown[:1]})"
        raise CheckpointError(rule_message(rule, got=f"{got} in {directory}", cure=_SAME_CONFIG))
    for name, shape in sorted(wanted.items()):
        if stored[name] != shape:
            rule = f"{name} must have shape {shape}"
            raise CheckpointError(rule_message(rule, got=f"{stored[name]} in {directory}", cure=_SAME_CONFIG))


class _TensorWriter(FileSystemWriterAsync):
    """Writes the shards that megatron's plan gives to this rank."""

    def __init__(self, directory: str, *, copies: bool) -> None:
        super().__init__(directory, thread_count=1)
        self.results: list[WriteResult] = []
        self._copies = copies
        self._name = ""
        self._items: list[tuple[Any, Tensor]] = []

    def prepare_write_data(self, plan: Any, planner: Any) -> None:
        """Called by megatron with the plan of this rank."""
        self._name = f"{plan.storage_data.prefix}0.distcp"
        self._items = [(item, self._stored(planner.resolve_data(item))) for item in plan.items]

    def write(self) -> tuple[str, ...]:
        """Writes the file, synced to disk; its name, nothing where this rank has no shard to write."""
        items, self._items = self._items, []
        if not items:
            return ()
        with open(os.path.join(self.checkpoint_dir, self._name), "wb") as file:
            for item, tensor in items:
                start = file.tell()
                torch.save(tensor, file)
                length = file.tell() - start
                self.results.append(WriteResult(item.index, length, _StorageInfo(self._name, start, length)))
        return (self._name,)

    def _stored(self, tensor: Tensor) -> Tensor:
        """On the CPU and with a storage of its own: torch.save writes whole storages."""
        stored = tensor.detach().to("cpu", copy=self._copies).contiguous()
        is_view = stored.untyped_storage().nbytes() != stored.numel() * stored.element_size()
        return stored.clone() if is_view else stored
