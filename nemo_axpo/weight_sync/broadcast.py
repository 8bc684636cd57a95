"""Buckets as broadcasts of torch.distributed: the transport across hosts, NCCL on GPUs and gloo on CPUs.

One code path for both backends. gloo is what the tests run; NCCL was not yet run.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from nemo_axpo.engines.fleet.protocol import ServerClient
from nemo_axpo.weight_sync import groups
from nemo_axpo.weight_sync.buckets import Bucket
from nemo_axpo.weight_sync.sources import BROADCAST
from nemo_axpo.weight_sync.transports import num_workers


class BroadcastTransport:
    """The trainer is rank 0; every worker of every server is a further rank. The group outlives the update.

    It is built anew for other servers and after any failure.
    """

    is_collective = True

    def __init__(self, *, device: str | torch.device, address: str, timeout_s: float) -> None:
        """``device``: cuda broadcasts by NCCL, cpu by gloo. ``address``: of this host, as the servers reach it."""
        self._device = torch.device(device)
        self._backend = "nccl" if self._device.type == "cuda" else "gloo"
        self._address, self._timeout_s = address, timeout_s
        self._tcp_store: dist.TCPStore | None = None
        self._members: tuple[tuple[str, int], ...] = ()
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)
        self._num_updates = 0
        self._num_ranks = 1
        self._group: Any = None
        self._forget_group()

    def channels(self, servers: Sequence[ServerClient]) -> Mapping[str, Mapping[str, Any]]:
        """Which ranks the workers of each server are, and where to meet."""
        members = tuple((server.name, num_workers(server)) for server in servers)
        if members != self._members:
            self._forget_group()
            self._members = members
        if self._tcp_store is None:
            self._tcp_store = groups.host_store(timeout_s=self._timeout_s)
        self._store = dist.PrefixStore(self._group_id, self._tcp_store)
        self._num_updates += 1
        self._num_ranks = 1 + sum(count for _, count in members)
        shared = {
            "transport": BROADCAST,
            "backend": self._backend,
            "host": self._address,
            "port": self._tcp_store.port,
            "group": self._group_id,
            "is_new": self._group is None,
            "num_ranks": self._num_ranks,
            "timeout_s": self._timeout_s,
        }
        first, channels = 1, {}
        for name, count in members:
            channels[name] = {**shared, "first_rank": first}
            first += count
        return channels

    def stage(self, bucket: Bucket) -> dict[str, Any]:
        """Into one block of this rank's memory."""
        if self._buffer.numel() < bucket.layout.num_bytes:
            self._buffer = torch.empty(bucket.layout.num_bytes, dtype=torch.uint8, device=self._device)
        bucket.write_to(self._buffer)
        self._step, self._num_bytes = f"{self._num_updates}/{bucket.layout.number}", bucket.layout.num_bytes
        return {**bucket.layout.to_json(), "step": self._step}

    def send(self, *, failure: Callable[[], str | None]) -> None:
        """Meets the workers and broadcasts; WeightTransferError where one of them does not come, or is lost on the way."""
        try:
            if self._group is None:
                self._meet("join", failure=failure)
                self._group = groups.create_group(
                    self._backend,
                    store=self._store,
                    rank=groups.TRAINER_RANK,
                    size=self._num_ranks,
                    timeout_s=self._timeout_s,
                )
            self._meet(self._step, failure=failure)
            groups.broadcast(self._group, self._buffer[: self._num_bytes])
        except BaseException:
            self._forget_group()
            raise

    def end(self, *, has_failed: bool) -> None:
        """Where anything failed the next group is a new one."""
        if has_failed:
            self._forget_group()

    def close(self) -> None:
        """Leaves the group and stops the store."""
        self._forget_group()
        self._tcp_store, self._store = None, None
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)

    def _meet(self, step: str, *, failure: Callable[[], str | None]) -> None:
        ranks = list(range(1, self._num_ranks))
        groups.give_go(self._store, step, ranks=ranks, timeout_s=self._timeout_s, failure=failure)

    def _forget_group(self) -> None:
        group, self._group = self._group, None
        self._group_id, self._members = f"weights-{uuid.uuid4().hex}", ()
        if group is not None:
            with contextlib.suppress(RuntimeError):  # a broken group cannot be left in order
                group.abort()
