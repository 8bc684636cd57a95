"""The ranks of a torch.distributed job. Records and samples travel over gloo, whatever the tensors of the model use."""

from __future__ import annotations

import datetime
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_axpo.distributed.wire import pack_records, pack_samples, unpack_records, unpack_samples
from nemo_axpo.types import TrainingSample

Record = TypeVar("Record")


class ProcessReplicas:
    """:class:`~nemo_axpo.distributed.replicas.Replicas` over an initialised process group."""

    def __init__(self, replica_ranks: Sequence[Sequence[int]], *, timeout_s: float = 1800.0) -> None:
        """``replica_ranks``: per replica its global ranks, the leader first; together all ranks of the job.

        ``timeout_s``: longest wait for the slowest replica's rollouts. Every rank constructs it at the same point:
        groups are created.
        """
        rank = dist.get_rank()
        self.index = next(number for number, ranks in enumerate(replica_ranks) if rank in ranks)
        self.count = len(replica_ranks)
        self._peers = tuple(replica_ranks[self.index])
        self.is_leader, self.is_main = rank == self._peers[0], rank == replica_ranks[0][0]
        new_group = functools.partial(
            dist.new_group, backend="gloo", timeout=datetime.timedelta(seconds=timeout_s)
        )
        self._world = new_group()
        self._leaders = new_group([ranks[0] for ranks in replica_ranks])
        groups = [new_group(list(ranks)) for ranks in replica_ranks]
        self._replica = groups[self.index]
        self._num_bytes: Counter[str] = Counter()

    def gather(self, records: Sequence[Record], *, kind: type[Record]) -> tuple[Record, ...]:
        """See :class:`Replicas <nemo_axpo.distributed.replicas.Replicas>`."""
        data = pack_records(records)
        self._num_bytes["records"] += len(data)
        return tuple(record for part in self._all_gather(data) for record in unpack_records(part, kind=kind))

    def move(
        self, samples: Sequence[TrainingSample], *, replica_of: Mapping[str, int], image_store: Any
    ) -> tuple[TrainingSample, ...]:
        """See :class:`Replicas <nemo_axpo.distributed.replicas.Replicas>`.

        Leaders exchange rows among each other, each row once, and hand what they got to their replica.
        """
        assert self.is_leader or not samples, "samples come from leaders"
        kept = [sample for sample in samples if replica_of.get(sample.rollout_id) == self.index]
        arrived: list[bytes] = []
        if self.is_leader and self.count > 1:
            outgoing = [self._outgoing(samples, replica, replica_of, image_store) for replica in range(self.count)]
            arrived = self._all_to_all(outgoing)
        for part in arrived:
            kept += unpack_samples(part, image_store=image_store)
        if len(self._peers) > 1:
            kept = self._broadcast(kept, image_store=image_store)
        return tuple(sorted(kept, key=lambda sample: sample.rollout_id))

    def take_num_bytes(self) -> dict[str, int]:
        """See :class:`Replicas <nemo_axpo.distributed.replicas.Replicas>`."""
        sent = {name: self._num_bytes[name] for name in ("records", "samples")}
        self._num_bytes.clear()
        return sent

    def _outgoing(
        self, samples: Sequence[TrainingSample], replica: int, replica_of: Mapping[str, int], image_store: Any
    ) -> bytes:
        """What goes to another replica; nothing to this one."""
        if replica == self.index:
            return b""
        leaving = [sample for sample in samples if replica_of.get(sample.rollout_id) == replica]
        data = pack_samples(leaving, image_store=image_store)
        self._num_bytes["samples"] += len(data)
        return data

    def _all_gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank."""
        lengths = torch.zeros(dist.get_world_size(), dtype=torch.int64)
        dist.all_gather_into_tensor(lengths, torch.tensor([len(data)]), group=self._world)
        longest = int(lengths.max())
        if not longest:
            return [b""] * len(lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = _tensor(data)
        gathered = torch.empty(len(lengths) * longest, dtype=torch.uint8)
        dist.all_gather_into_tensor(gathered, padded, group=self._world)
        rows = gathered.view(len(lengths), longest)
        return [_bytes(row[:length]) for row, length in zip(rows, lengths.tolist(), strict=True)]

    def _all_to_all(self, outgoing: Sequence[bytes]) -> list[bytes]:
        """Part r of ``outgoing`` goes to replica r; what every replica had for this one. Leaders only."""
        sizes = torch.tensor([len(part) for part in outgoing])
        arriving = torch.empty_like(sizes)
        dist.all_to_all_single(arriving, sizes, group=self._leaders)
        received = torch.empty(int(arriving.sum()), dtype=torch.uint8)
        dist.all_to_all_single(
            received, _tensor(b"".join(outgoing)), arriving.tolist(), sizes.tolist(), group=self._leaders
        )
        return [_bytes(part) for part in received.split(arriving.tolist())]

    def _broadcast(self, samples: Sequence[TrainingSample], *, image_store: Any) -> list[TrainingSample]:
        """The leader's samples on every rank of its replica."""
        data = pack_samples(samples, image_store=image_store) if self.is_leader else b""
        self._num_bytes["samples"] += len(data) * (len(self._peers) - 1)
        length = torch.tensor([len(data)])
        dist.broadcast(length, src=self._peers[0], group=self._replica)
        buffer = _tensor(data) if self.is_leader else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(buffer, src=self._peers[0], group=self._replica)
        return list(samples) if self.is_leader else unpack_samples(_bytes(buffer), image_store=image_store)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
