"""Buckets in POSIX shared memory: the transport to servers on the trainer's host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_axpo.engines.fleet.protocol import ServerClient
from nemo_axpo.errors import WeightTransferError, rule_message
from nemo_axpo.weight_sync.buckets import Bucket
from nemo_axpo.weight_sync.sources import SHARED_MEMORY, SHARED_MEMORY_DIRECTORY

NUM_SEGMENTS = 2
"""One is filled while servers read the other."""


class SharedMemoryTransport:
    """Two segments, kept from update to update. Python's resource tracker removes them should this process be killed."""

    is_collective = False

    def __init__(self) -> None:
        self._segments: list[_Segment | None] = [None] * NUM_SEGMENTS

    def channels(self, servers: Sequence[ServerClient]) -> Mapping[str, Mapping[str, Any]]:
        """The same to every server."""
        return {server.name: {"transport": SHARED_MEMORY} for server in servers}

    def stage(self, bucket: Bucket) -> dict[str, Any]:
        """WeightTransferError where shared memory is too small for the bucket."""
        slot = bucket.layout.number % NUM_SEGMENTS
        segment = self._segments[slot]
        if segment is None or segment.num_bytes < bucket.layout.num_bytes:
            self._release(slot)
            segment = self._segments[slot] = _Segment(max(1, bucket.layout.num_bytes))
        bucket.write_to(segment.bytes)
        return {**bucket.layout.to_json(), "segment": segment.name}

    def send(self, *, failure: Callable[[], str | None]) -> None:
        """Servers read when they like."""

    def end(self, *, has_failed: bool) -> None:
        """The segments stay."""

    def close(self) -> None:
        """Removes the segments; a server that still reads one keeps what it has mapped."""
        for slot in range(NUM_SEGMENTS):
            self._release(slot)

    def _release(self, slot: int) -> None:
        segment, self._segments[slot] = self._segments[slot], None
        if segment is not None:
            segment.release()


class _Segment:
    """A block of shared memory whose pages exist: writing to it cannot fail."""

    def __init__(self, num_bytes: int) -> None:
        free = shutil.disk_usage(SHARED_MEMORY_DIRECTORY).free
        if free < num_bytes:
            raise _no_space(num_bytes, got=f"{free / 2**20:.0f} MiB free")
        self.num_bytes = num_bytes
        self._memory = SharedMemory(create=True, size=num_bytes)
        self.name = self._memory.name
        try:
            _allocate(SHARED_MEMORY_DIRECTORY / self.name, num_bytes=num_bytes)
        except OSError as error:
            self._memory.close()
            self._memory.unlink()
            raise _no_space(num_bytes, got=error) from error
        self.bytes: Tensor | None = torch.frombuffer(self._memory.buf, dtype=torch.uint8, count=num_bytes)

    def release(self) -> None:
        self.bytes = None  # a mapping cannot be closed while a tensor lies in it
        self._memory.close()
        self._memory.unlink()


def _allocate(path: Path, *, num_bytes: int) -> None:
    """Claims the pages: a full file system shows here, and not as a bus error that kills the trainer as it writes."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)


def _no_space(num_bytes: int, *, got: object) -> WeightTransferError:
    rule = f"a bucket needs {num_bytes / 2**20:.0f} MiB of {SHARED_MEMORY_DIRECTORY}, and two buckets exist at a time"
    cure = (
        "lower engine.sync.bucket_mib (the largest tensor is the least), enlarge it (docker --shm-size, or mount -o "
        "remount,size=…), remove leftovers in it, or set engine.sync.transport=disk"
    )
    return WeightTransferError(rule_message(rule, got=got, cure=cure))
