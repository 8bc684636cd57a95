"""Buckets as safetensors files: the transport where nothing but a file system is shared."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from nemo_axpo.engines.fleet.protocol import ServerClient
from nemo_axpo.errors import WeightTransferError, rule_message
from nemo_axpo.weight_sync.buckets import Bucket
from nemo_axpo.weight_sync.sources import DISK

_HEADER_BYTES = 512
"""More than a tensor's share of a header."""
NUM_KEPT = 2
"""Files at a time: one is written while servers read the other."""


class DiskTransport:
    """Every bucket is a file that gets its name when it is whole, and goes when the one after next is written."""

    is_collective = False

    def __init__(self, directory: str | Path) -> None:
        """``directory``: servers must see it under the same path."""
        self._directory = Path(directory).absolute()
        self._update: Path | None = None
        self._files: list[Path] = []

    def channels(self, servers: Sequence[ServerClient]) -> Mapping[str, Mapping[str, Any]]:
        """The same to every server."""
        self.close()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._update = Path(tempfile.mkdtemp(prefix="weights-", dir=self._directory))
            self._update.chmod(0o755)  # servers may run as another user
        except OSError as error:
            raise _cannot_write(self._directory, num_bytes=0, got=error) from error
        return {server.name: {"transport": DISK} for server in servers}

    def stage(self, bucket: Bucket) -> dict[str, Any]:
        """WeightTransferError where the disk is too full."""
        if len(self._files) == NUM_KEPT:
            self._files.pop(0).unlink(missing_ok=True)
        path = self._update / f"bucket-{bucket.layout.number:05d}.safetensors"
        self._write(bucket, path)
        self._files.append(path)
        return {**bucket.layout.to_json(), "file": str(path), "file_bytes": path.stat().st_size}

    def send(self, *, failure: Callable[[], str | None]) -> None:
        """Servers read when they like."""

    def end(self, *, has_failed: bool) -> None:
        """Removes the files."""
        self.close()

    def close(self) -> None:
        """Removes the files."""
        if self._update is not None:
            shutil.rmtree(self._update, ignore_errors=True)
        self._update, self._files = None, []

    def _write(self, bucket: Bucket, path: Path) -> None:
        layout, partial = bucket.layout, path.with_suffix(".partial")
        num_bytes = layout.num_bytes + _HEADER_BYTES * (1 + len(layout.entries))
        free = shutil.disk_usage(self._directory).free
        if free < num_bytes:
            raise _cannot_write(path, num_bytes=num_bytes, got=f"{free / 2**20:.0f} MiB free")
        tensors = {
            entry.name: tensor.cpu().contiguous() for entry, tensor in zip(layout.entries, bucket.tensors, strict=True)
        }
        try:
            save_file(tensors, partial)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            raise _cannot_write(path, num_bytes=num_bytes, got=error) from error
        finally:
            partial.unlink(missing_ok=True)


def _cannot_write(path: Path, *, num_bytes: int, got: object) -> WeightTransferError:
    rule = f"a bucket of {num_bytes / 2**20:.0f} MiB must be written to {path}"
    cure = "free space, lower engine.sync.bucket_mib, or choose another engine.sync.directory"
    return WeightTransferError(rule_message(rule, got=got, cure=cure))
