"""The policy's way from the actor to the engines after an update, on every rank of a job.

    every rank      waits for the others where replicas share servers: a push aborts what is asked of a server
    every rank      puts whole tensors together, one at a time, with the other ranks of its replica
    pushing ranks   stream them into their engine; a fleet of servers gets them in buckets
    every rank      learns how it went, and the replicas that share another one's servers take over its version
    every rank      takes part in the proof that engine and trainer now agree, every so many updates
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nemo_axpo.distributed.replicas import OneProcess, Replicas
from nemo_axpo.engines.base import Engine, EngineError
from nemo_axpo.weight_sync.shares import pushes

_ONE_PROCESS = OneProcess()
MAX_PUSHES = 2
"""A broadcast ends for every server when one dies; the second push is without it."""


@dataclass(frozen=True)
class SyncRecord:
    """What one rank did in a sync; the ranks exchange it."""

    seconds: float = 0.0
    num_bytes: int = 0
    """Read from the actor's stream by a rank that pushes."""
    num_buckets: int = 0
    """0 where the engine reads the stream itself."""
    bucket_bytes: int = 0
    error: str = ""
    can_retry: bool = False
    """Servers failed: others may be left."""


@runtime_checkable
class BucketEngine(Protocol):
    """An engine that hands the weights on in buckets."""

    @property
    def num_buckets(self) -> int:
        """Of the last ``load_weights``."""

    @property
    def bucket_bytes(self) -> int:
        """Most bytes of a bucket, but for a single larger tensor."""


class WeightSync:
    """Brings the policy to this job's engines."""

    def __init__(
        self,
        actor: Any,
        engine: Engine | None,
        *,
        replicas: Replicas = _ONE_PROCESS,
        num_servers: int | None = None,
        prove: Callable[[], Awaitable[float]] | None = None,
        prove_every: int = 1,
    ) -> None:
        """``engine``: None on ranks that do not sample. ``num_servers``: of the job; None where engines are in-process.

        ``prove`` measures how far engine and trainer are apart, and raises where that is too far; after every
        ``prove_every`` updates.
        """
        self._actor, self._engine, self._replicas = actor, engine, replicas
        self._has_servers = num_servers is not None
        self._is_shared = num_servers is not None and num_servers < replicas.count
        self._is_pusher = engine is not None and (num_servers is None or pushes(num_servers, replica=replicas.index))
        self._prove, self._prove_every = prove, prove_every

    async def after_update(self, index: int) -> dict[str, float]:
        """Push and proof after update ``index`` (0, 1, …); metrics, equal on every rank."""
        metrics = self.push()
        if self._prove is not None and (index + 1) % self._prove_every == 0:
            start = time.perf_counter()
            difference = await self._prove()
            metrics |= {"sync/proof": difference, "sync/proof_s": time.perf_counter() - start}
        return metrics

    def push(self) -> dict[str, float]:
        """The actor's weights to every engine, which then samples them. Every rank of the job calls it.

        EngineError on every rank where one of them could not bring them, the error itself on that one.
        """
        if self._is_shared:
            self._replicas.gather([], kind=SyncRecord)  # another replica may still try out the server that is pushed to
        for number in range(1, MAX_PUSHES + 1):
            record, error = self._push()
            records = self._replicas.gather([record], kind=SyncRecord)
            failed = [record for record in records if record.error]
            if not failed:
                break
            if number == MAX_PUSHES or not all(record.can_retry for record in failed):
                raise error or EngineError(f"the weights did not reach every engine: {failed[0].error}")
        if self._is_shared:
            self._take_over()
        return sync_metrics(records)

    def _push(self) -> tuple[SyncRecord, Exception | None]:
        """This rank's part; where it fails the rank still helps the others to put all tensors together."""
        start, stream = time.perf_counter(), _CountedStream(self._actor.hf_tensors())
        error: Exception | None = None
        if self._is_pusher:
            try:
                self._engine.load_weights(stream, policy_version=self._actor.policy_version)
                self._check_version()
            except Exception as caught:  # noqa: BLE001 - every rank must learn of it before one of them stops
                error = caught
        num_bytes = stream.num_bytes
        deque(stream, maxlen=0)
        buckets = self._engine if self._is_pusher and isinstance(self._engine, BucketEngine) else None
        record = SyncRecord(
            seconds=time.perf_counter() - start,
            num_bytes=num_bytes,
            num_buckets=buckets.num_buckets if buckets else 0,
            bucket_bytes=buckets.bucket_bytes if buckets else 0,
            error=f"{type(error).__name__} on replica {self._replicas.index}: {error}" if error else "",
            can_retry=self._has_servers and isinstance(error, EngineError),
        )
        return record, error

    def _check_version(self) -> None:
        """Rollouts refuse completions of another version than the engine's, hence that must be the actor's."""
        held, pushed = self._engine.policy_version, self._actor.policy_version
        if held != pushed:
            raise EngineError(f"the engine must hold the version that was pushed, {pushed}; it says {held}: restart it")

    def _take_over(self) -> None:
        """Replicas that share servers with the one that pushed: their engines check and adopt the version."""
        error: Exception | None = None
        if self._engine is not None and not self._is_pusher:
            try:
                self._engine.adopt_weights(policy_version=self._actor.policy_version)
                self._check_version()
            except EngineError as caught:
                error = caught
        text = f"replica {self._replicas.index}: {error}" if error else ""
        for record in self._replicas.gather([SyncRecord(error=text)], kind=SyncRecord):
            if record.error:
                raise error or EngineError(f"a shared server does not hold the new weights: {record.error}")


def sync_metrics(records: Iterable[SyncRecord]) -> dict[str, float]:
    """Of the job: seconds of the slowest rank, bytes and buckets of all."""
    records = list(records)
    seconds, num_bytes = max(record.seconds for record in records), sum(record.num_bytes for record in records)
    return {
        "sync/seconds": seconds,
        "sync/bytes": float(num_bytes),
        "sync/bytes_per_s": num_bytes / seconds,
        "sync/buckets": float(sum(record.num_buckets for record in records)),
        "sync/bucket_mib": max(record.bucket_bytes for record in records) / 2**20,
    }


def take_part(actor: Any) -> None:
    """This rank's share in tensors that another rank of the replica wants."""
    deque(actor.hf_tensors(), maxlen=0)


class _CountedStream:
    """Named tensors that are read at most once, and how many bytes have come."""

    def __init__(self, named_tensors: Iterable[tuple[str, Any]]) -> None:
        self._stream, self.num_bytes = iter(named_tensors), 0

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self

    def __next__(self) -> tuple[str, Any]:
        name, tensor = next(self._stream)
        self.num_bytes += tensor.nbytes
        return name, tensor
