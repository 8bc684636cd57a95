"""Brings one stream of weights to several servers at once, over one transport.

    trainer   stage 0   stage 1            stage 2            …
    servers             take 0   (both)    take 1   (both)    …

A server that fails is left out from there on; the others get everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch import Tensor

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.protocol import ServerClient
from nemo_axpo.errors import WeightTransferError, rule_message
from nemo_axpo.weight_sync.buckets import Bucket, pack
from nemo_axpo.weight_sync.transports import Transport


class BucketPusher:
    """Implements ``nemo_axpo.engines.fleet.protocol.WeightPusher``."""

    def __init__(self, transport: Transport, *, bucket_bytes: int) -> None:
        self._transport, self.bucket_bytes = transport, bucket_bytes
        self.num_buckets = 0
        """Of the last push, as it went to every server."""

    def push(
        self, named_tensors: Iterable[tuple[str, Tensor]], *, servers: Sequence[ServerClient], policy_version: int
    ) -> Mapping[str, Exception]:
        """See the protocol. WeightTransferError where the transport itself cannot go on, such as a full disk."""
        self.num_buckets = 0
        with ThreadPoolExecutor(max(1, len(servers))) as threads:
            calls, left_out = self._start(servers, threads)
            try:
                for bucket in pack(named_tensors, bucket_bytes=self.bucket_bytes):
                    self.num_buckets += 1
                    if calls.servers:  # where none is left the stream is consumed all the same
                        self._push(bucket, calls)
                self._settle(calls)
                calls.submit(lambda server: server.finish_update(policy_version=policy_version))
            finally:
                calls.wait()
                self._transport.end(has_failed=bool(calls.failures))
        return {**left_out, **calls.failures}

    def close(self) -> None:
        """Frees what the transport holds."""
        self._transport.close()

    def _start(
        self, servers: Sequence[ServerClient], threads: ThreadPoolExecutor
    ) -> tuple[_Calls, dict[str, Exception]]:
        """Opens the update on every server that can; the others, with what they said.

        A collective transport begins with exactly those that take part: once more with all, as a restarted server is in
        no group of an earlier update, then without those that fail.
        """
        left_out: dict[str, Exception] = {}
        for attempt in itertools.count():
            calls, channels = _Calls(servers, threads), self._transport.channels(servers)
            calls.submit(lambda server, channels=channels: server.start_update(channels[server.name]))
            calls.wait()
            if attempt or not self._transport.is_collective:
                left_out |= calls.failures
                servers = calls.servers
            if not calls.failures or not self._transport.is_collective or not servers:
                calls.failures = {}
                return calls, left_out
            self._transport.end(has_failed=True)
        raise AssertionError("every round but the first leaves out a server")

    def _push(self, bucket: Bucket, calls: _Calls) -> None:
        message = self._transport.stage(bucket)
        self._settle(calls)
        if not calls.servers:
            return
        calls.submit(lambda server: server.update(message))
        try:
            self._transport.send(failure=calls.first_failure)
        except WeightTransferError as error:
            calls.wait()
            calls.fail_all(error)

    def _settle(self, calls: _Calls) -> None:
        """Waits for the bucket before; a collective transport cannot go on without a server."""
        calls.wait()
        if calls.failures and self._transport.is_collective and calls.servers:
            rule = "all servers of a broadcast take every bucket"
            got = "; ".join(f"{name}: {error}" for name, error in calls.failures.items())
            calls.fail_all(WeightTransferError(rule_message(rule, got=got, cure="the next push leaves out who failed")))


class _Calls:
    """One call at a time to every server that has not failed."""

    def __init__(self, servers: Sequence[ServerClient], threads: ThreadPoolExecutor) -> None:
        self.servers, self.failures = list(servers), dict[str, Exception]()
        self._threads = threads
        self._running: dict[str, Future[None]] = {}

    def submit(self, call: Callable[[ServerClient], None]) -> None:
        """Calls every server in a thread of its own."""
        self._running = {server.name: self._threads.submit(call, server) for server in self.servers}

    def wait(self) -> None:
        """Until all have answered; who failed is left out from here on. Errors that no server makes come out."""
        running, self._running = self._running, {}
        wait(running.values())
        for name, future in running.items():
            error = future.exception()
            if isinstance(error, EngineError):
                self.failures[name] = error
            elif error is not None:
                raise error
        self.servers = [server for server in self.servers if server.name not in self.failures]

    def first_failure(self) -> str | None:
        """Of a call that still counts as running; None while all go well."""
        for name, future in self._running.items():
            if future.done() and future.exception() is not None:
                return f"{name} failed: {future.exception()}"
        return None

    def fail_all(self, error: Exception) -> None:
        """No server can go on."""
        self.failures |= {server.name: error for server in self.servers}
        self.servers = []
