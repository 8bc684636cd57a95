"""A process group beside all others, and how its members meet: torch and the standard library alone.

Trainer and inference workers have default groups of their own already, so the group's backend is built directly on a TCP
store. Nobody enters a collective before all have said that they are there, so that one who never comes leaves nobody hanging:

    worker    ready/<step>/<rank>  ──▶  waits for go/<step>
    trainer   waits for all ready, or for the first failure  ──▶  go/<step> = "go" or "stop: <why>"
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_axpo.errors import WeightTransferError, rule_message

_GO = b"go"
_POLL_S = 0.0005
_BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"
TRAINER_RANK = 0


def host_store(*, timeout_s: float) -> dist.TCPStore:
    """A store in this process, on a port that the system chooses."""
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=_seconds(timeout_s))


def join_store(host: str, port: int, *, timeout_s: float) -> dist.TCPStore:
    """The trainer's store; WeightTransferError where it cannot be reached."""
    try:
        return dist.TCPStore(host, port, is_master=False, timeout=_seconds(timeout_s))
    except Exception as error:  # torch names its errors differently from version to version
        rule = f"the worker must reach the trainer at {host}:{port}"
        cure = "open the port, or set engine.sync.address to an address of the trainer that the servers can reach"
        raise WeightTransferError(rule_message(rule, got=error, cure=cure)) from error


def create_group(backend: str, *, store: dist.Store, rank: int, size: int, timeout_s: float) -> Any:
    """A group of ``backend`` (gloo or nccl) among the clients of ``store``; returns when all members are in it."""
    if backend == "gloo":
        return dist.ProcessGroupGloo(store, rank, size, _seconds(timeout_s))
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = _seconds(timeout_s)
    with _raising_waits():
        return dist.ProcessGroupNCCL(store, rank, size, options)


@contextlib.contextmanager
def _raising_waits() -> Iterator[None]:
    """NCCL groups built in here raise from a wait when a member is lost, or does not come in time.

    By torch's default a thread beside them ends the process instead, and :func:`broadcast` could not tell. Torch reads which
    of the two from the environment as it builds a group (``ProcessGroupNCCL.cpp``); the trainer's own groups keep theirs.
    """
    before = os.environ.get(_BLOCKING_WAIT)
    os.environ[_BLOCKING_WAIT] = "1"
    try:
        yield
    finally:
        del os.environ[_BLOCKING_WAIT]
        if before is not None:
            os.environ[_BLOCKING_WAIT] = before


def broadcast(group: Any, tensor: Tensor) -> None:
    """The trainer's ``tensor`` in all members; WeightTransferError where a member was lost on the way."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = TRAINER_RANK, 0
    try:
        group.broadcast([tensor], options).wait()
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)  # a wait holds back this stream alone
    except RuntimeError as error:
        rule = "a broadcast needs all of its members to the end"
        cure = "see why a server died; the next push leaves it out"
        raise WeightTransferError(rule_message(rule, got=str(error).splitlines()[0], cure=cure)) from error


def wait_for_go(store: dist.Store, step: str, *, rank: int) -> None:
    """A worker's side: says that it is ready and waits; WeightTransferError where the trainer says stop, or nothing."""
    store.set(f"ready/{step}/{rank}", b"")
    try:
        answer = store.get(f"go/{step}")
    except Exception as error:  # a store that is gone, or silent for its timeout
        rule = "the trainer must say when a broadcast begins"
        raise WeightTransferError(
            rule_message(rule, got=error, cure="see whether it still runs; push again")
        ) from error
    if answer != _GO:
        raise WeightTransferError(answer.decode())


def give_go(
    store: dist.Store, step: str, *, ranks: list[int], timeout_s: float, failure: Callable[[], str | None]
) -> None:
    """The trainer's side. ``failure`` says why a worker will not come; WeightTransferError then, as on every worker."""
    wanted = [f"ready/{step}/{rank}" for rank in ranks]
    deadline = time.monotonic() + timeout_s
    while not store.check(wanted):
        reason = failure()
        if reason is None and time.monotonic() > deadline:
            reason = f"not all {len(ranks)} workers were ready within {timeout_s:g} s"
        if reason is not None:
            rule = "a broadcast begins when all workers are ready"
            message = rule_message(rule, got=reason, cure="the next push leaves out the servers that failed")
            store.set(f"go/{step}", message.encode())
            raise WeightTransferError(message)
        time.sleep(_POLL_S)
    store.set(f"go/{step}", _GO)


def _seconds(timeout_s: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=timeout_s)
