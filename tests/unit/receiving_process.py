"""A process that receives weights as an inference worker does, and the client that the trainer's side calls it by.

It samples nothing; it says which bytes it holds, and only while its receiver has a version.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from multiprocessing.connection import Connection

import torch
from forked import context

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.protocol import ServerDownError
from nemo_axpo.weight_sync import groups
from nemo_axpo.weight_sync.receiver import WeightReceiver

Digest = dict[str, tuple[str, tuple[int, ...], str]]
"""Name → dtype, shape, SHA-256 of the bytes."""


def digest(named_tensors) -> Digest:
    """What was sent, or has arrived, bit for bit."""
    found = {}
    for name, tensor in named_tensors:
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = (str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(content).hexdigest())
    return found


class Worker:
    """What runs in the other process."""

    def __init__(self) -> None:
        self.receiver, self.held, self.orders = WeightReceiver(), {}, {}

    def order(self, **orders) -> None:
        """``dies_at``, ``dies_within``, ``fails_at``: number of the bucket at which the process ends, before or within a broadcast,
        or loading raises."""
        self.orders = orders

    def start_update(self, channel):
        if self.orders.get("fails_at") == "start":
            raise ValueError("no update today")
        self.receiver.start(channel)
        self.held = {}

    def update(self, bucket):
        if bucket["number"] == self.orders.get("dies_at"):
            os._exit(9)
        if bucket["number"] == self.orders.get("dies_within"):
            groups.broadcast = lambda *_: os._exit(9)
        copies = self.orders.get("copies", False)
        tensors = self.receiver.receive(bucket, copy=copies)
        if bucket["number"] == self.orders.get("fails_at"):
            raise ValueError("the loader broke")
        self.held |= digest(tensors)

    def finish_update(self, policy_version):
        self.receiver.finish(policy_version=policy_version)

    def serve(self):
        """Version and weights."""
        if self.receiver.policy_version is None:
            raise RuntimeError("nothing whole to serve")
        return self.receiver.policy_version, self.held


def _run(connection: Connection) -> None:
    worker = Worker()
    with contextlib.suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            try:
                connection.send((True, getattr(worker, method)(**arguments)))
            except Exception as error:  # noqa: BLE001 - as a server answers with a status
                connection.send((False, f"{type(error).__name__}: {error}"))
    worker.receiver.close()


class ReceivingProcess:
    """A ``ServerClient`` as far as weights go."""

    def __init__(self, name: str) -> None:
        self.name, self.messages = name, []
        self._restart()

    def _restart(self) -> None:
        self._connection, theirs = context().Pipe()
        self._process = context().Process(target=_run, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def restart(self) -> None:
        """A new process under the old name."""
        self.close()
        self._restart()

    def start_update(self, channel) -> None:
        self._call("start_update", channel=channel)

    def update(self, bucket) -> None:
        self.messages.append(bucket)
        self._call("update", bucket=bucket)

    def finish_update(self, *, policy_version) -> None:
        self._call("finish_update", policy_version=policy_version)

    def order(self, **orders) -> None:
        self._call("order", **orders)

    def serve(self) -> tuple[int, Digest]:
        return self._call("serve")

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=20)
        assert self._process.exitcode is not None, "the receiving process hangs"

    def _call(self, method, **arguments):
        try:
            self._connection.send((method, arguments))
            is_good, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ServerDownError(f"{self.name} is gone: {type(error).__name__}") from error
        if not is_good:
            raise EngineError(f"{self.name} answered {answer}")
        return answer
