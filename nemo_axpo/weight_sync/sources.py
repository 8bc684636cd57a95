"""Where the buckets of an update come from, by transport. For inference workers: torch and the standard library alone."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_axpo.errors import WeightTransferError, rule_message
from nemo_axpo.weight_sync import groups
from nemo_axpo.weight_sync.layout import BucketLayout, TensorEntry, check_entries, views

SHARED_MEMORY, BROADCAST, DISK = "shared_memory", "broadcast", "disk"
SHARED_MEMORY_DIRECTORY = Path("/dev/shm")
"""Where Linux shows POSIX shared memory as files."""


class Source(Protocol):
    """Where the bytes of buckets come from."""

    def read(self, message: Mapping[str, Any], layout: BucketLayout) -> list[tuple[str, Tensor]]:
        """The tensors of one bucket, in memory that the next bucket may overwrite.

        WeightTransferError where they are not all there.
        """

    def rest(self) -> None:
        """Keeps only what the next update needs again."""

    def close(self) -> None:
        """Lets go of memory, connections and files."""


def open_source(channel: Mapping[str, Any], *, worker: int, device: torch.device, previous: Source | None) -> Source:
    """The source that ``channel`` describes: ``previous`` where it is the same one, which is closed otherwise.

    WeightTransferError for a transport that this version does not know.
    """
    transport = channel.get("transport")
    if transport == BROADCAST and isinstance(previous, BroadcastSource) and previous.group_id == channel["group"]:
        return previous
    if previous is not None:
        previous.close()
    if transport == BROADCAST:
        return BroadcastSource(channel, worker=worker, device=device)
    if transport in (SHARED_MEMORY, DISK):
        return SharedMemorySource() if transport == SHARED_MEMORY else FileSource()
    rule = f"a channel's transport is one of {SHARED_MEMORY}, {BROADCAST}, {DISK}"
    cure = "use the same version of nemo_axpo on both ends"
    raise WeightTransferError(rule_message(rule, got=repr(transport), cure=cure))


class SharedMemorySource:
    """Segments of POSIX shared memory on the trainer's host, mapped once an update each.

    They are mapped as files: attached by name, ``multiprocessing.shared_memory`` would register them with this process's
    resource tracker, which removes the trainer's segments when this process ends (before Python 3.13).
    """

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}

    def read(self, message: Mapping[str, Any], layout: BucketLayout) -> list[tuple[str, Tensor]]:
        """Views into the segment."""
        name = message["segment"]
        if name not in self._maps:
            self._maps[name] = _map(
                SHARED_MEMORY_DIRECTORY / name, num_bytes=layout.num_bytes, access=mmap.ACCESS_WRITE
            )
        segment = self._maps[name]
        if len(segment) < layout.num_bytes:
            raise _short(SHARED_MEMORY_DIRECTORY / name, num_bytes=layout.num_bytes, found=len(segment))
        return views(torch.frombuffer(segment, dtype=torch.uint8), layout.entries)

    def rest(self) -> None:
        """Unmaps the segments as soon as no tensor lies in them any more."""
        self._maps.clear()

    close = rest


class FileSource:
    """One safetensors file a bucket, on a file system that trainer and server share.

    Format: eight bytes of header length, a JSON header, the tensors (https://github.com/huggingface/safetensors#format).
    """

    def read(self, message: Mapping[str, Any], layout: BucketLayout) -> list[tuple[str, Tensor]]:
        """Views into the mapped file."""
        path, num_bytes = Path(message["file"]), message["file_bytes"]
        content = _map(path, num_bytes=num_bytes, access=mmap.ACCESS_COPY)
        (length,) = struct.unpack_from("<Q", content)
        try:
            header = json.loads(content[8 : 8 + length])
            entries = tuple(
                TensorEntry(e.name, e.dtype, e.shape, 8 + length + header[e.name]["data_offsets"][0])
                for e in layout.entries
            )
        except (ValueError, KeyError, TypeError) as error:
            rule = f"{path} must be a safetensors file with the bucket's {len(layout.entries)} tensors"
            got = f"{type(error).__name__}: {error}"
            raise WeightTransferError(rule_message(rule, got=got, cure="the file is damaged; push again")) from error
        check_entries(entries, num_bytes=len(content))
        return _file_views(content, entries)

    def rest(self) -> None:
        """Nothing is kept: a map lives as long as the tensors in it."""

    close = rest


class BroadcastSource:
    """A rank of the trainer's broadcast group; joins it at the first bucket, when everybody is known to be there."""

    def __init__(self, channel: Mapping[str, Any], *, worker: int, device: torch.device) -> None:
        if not channel["is_new"]:
            rule = "a worker is already in the group of an earlier push"
            raise WeightTransferError(rule_message(rule, got="a worker that is not", cure="build the group anew"))
        self.group_id = channel["group"]
        self._rank, self._size = channel["first_rank"] + worker, channel["num_ranks"]
        self._backend, self._timeout_s = channel["backend"], channel["timeout_s"]
        self._device = torch.device("cpu") if self._backend == "gloo" else device
        # Twice the trainer's patience: it speaks first, and says why.
        store = groups.join_store(channel["host"], channel["port"], timeout_s=2 * self._timeout_s)
        self._store = dist.PrefixStore(self.group_id, store)
        self._group: Any = None
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)

    def read(self, message: Mapping[str, Any], layout: BucketLayout) -> list[tuple[str, Tensor]]:
        """Views into the bytes that the trainer broadcasts now."""
        if self._group is None:
            groups.wait_for_go(self._store, "join", rank=self._rank)
            self._group = groups.create_group(
                self._backend, store=self._store, rank=self._rank, size=self._size, timeout_s=self._timeout_s
            )
        if self._buffer.numel() < layout.num_bytes:
            self._buffer = torch.empty(layout.num_bytes, dtype=torch.uint8, device=self._device)
        groups.wait_for_go(self._store, message["step"], rank=self._rank)
        groups.broadcast(self._group, self._buffer[: layout.num_bytes])
        return views(self._buffer, layout.entries)

    def rest(self) -> None:
        """Frees the buffer and stays in the group."""
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)

    def close(self) -> None:
        """Leaves the group."""
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(RuntimeError):  # a broken group cannot be left in order
                group.abort()


def _map(path: Path, *, num_bytes: int, access: int) -> mmap.mmap:
    """At least ``num_bytes`` of a file; reading past the end of a mapped file would kill the process."""
    try:
        with path.open("r+b" if access == mmap.ACCESS_WRITE else "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found < max(1, num_bytes):
                raise _short(path, num_bytes=num_bytes, found=found)
            return mmap.mmap(file.fileno(), 0, access=access)
    except OSError as error:
        rule = f"the worker must be able to read the trainer's bucket {path}"
        cure = (
            "shared memory needs one host and one IPC namespace (docker --ipc=host), disk a directory both ends mount"
        )
        raise WeightTransferError(rule_message(rule, got=error, cure=cure)) from error


def _short(path: Path, *, num_bytes: int, found: int) -> WeightTransferError:
    rule = f"bucket {path} has {num_bytes} bytes"
    return WeightTransferError(rule_message(rule, got=f"{found} bytes", cure="it was cut short or removed; push again"))


def _file_views(content: mmap.mmap, entries: tuple[TensorEntry, ...]) -> list[tuple[str, Tensor]]:
    """Tensors at any byte of a map; an empty one has no byte to point to."""
    return [
        (
            entry.name,
            torch.frombuffer(
                content, dtype=entry.dtype, count=entry.num_bytes // entry.dtype.itemsize, offset=entry.offset
            ).view(entry.shape)
            if entry.num_bytes
            else torch.empty(entry.shape, dtype=entry.dtype),
        )
        for entry in entries
    ]
