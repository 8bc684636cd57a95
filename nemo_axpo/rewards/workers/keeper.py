"""A process that keeps one warm worker: imports the function once, forks a child that calls it, replaces the child.

    trainer ──JSON line──▶ keeper ──▶ child (killed by the kernel when its CPU time is used up)
            ◀─JSON line──        ◀──

The keeper itself never calls the function, so it always answers; a new child is a fork of it and costs milliseconds, where a
new process would import sympy again. It is started by exec, so nothing of the trainer is in it, and it ends when the
trainer closes its input or dies.

A call's deadline is CPU time (``ITIMER_PROF``, whose signal the kernel delivers also inside one long C call): on a busy
machine a harmless call must not be taken for one that hangs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

CPU_LIMIT, MEMORY_LIMIT = "cpu_limit", "memory_limit"
"""Failures that are the arguments' fault."""
CRASH, STALLED, ERROR = "crash", "stalled", "error"
"""Failures that are not: the child died of something else, did not get the CPU, or the function raised."""


class Child:
    """A fork of the keeper that calls the function for one line after the other."""

    def __init__(self, function: Callable[..., Any], *, cpu_s: float, memory_bytes: int) -> None:
        job_out, job_in = os.pipe()
        reply_out, reply_in = os.pipe()
        self.num_calls, self.is_dead = 0, False
        self._pid = os.fork()
        if self._pid == 0:
            os.close(job_in)
            os.close(reply_out)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the keeper's input is not the child's
            serve_calls(function, os.fdopen(job_out, "rb"), reply_in, cpu_s=cpu_s, memory_bytes=memory_bytes)
        os.close(job_out)
        os.close(reply_in)
        self._jobs, self._replies = os.fdopen(job_in, "wb"), os.fdopen(reply_out, "rb")

    def call(self, line: bytes, *, stall_s: float) -> dict[str, Any]:
        """The reply to one line; afterwards the child is dead where it says so."""
        self.num_calls += 1
        try:
            self._jobs.write(line)
            self._jobs.flush()
        except BrokenPipeError:
            return self._failed()
        if not has_input(self._replies, timeout_s=stall_s):
            self.kill()
            return {"failure": STALLED, "message": f"no answer and no end of its CPU time within {stall_s:g} s"}
        reply = self._replies.readline()
        return json.loads(reply) if reply.endswith(b"\n") else self._failed()

    def kill(self) -> None:
        """Ends the child."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._close()

    def _failed(self) -> dict[str, Any]:
        status = os.waitpid(self._pid, 0)[1]
        self._close()
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGPROF:
            return {"failure": CPU_LIMIT, "message": "its CPU time was used up"}
        if code == -signal.SIGABRT:  # how GMP ends a process that has no more memory for a number
            return {"failure": MEMORY_LIMIT, "message": "it ended itself, as for want of memory"}
        return {"failure": CRASH, "message": f"the process ended with {_name(code)}"}

    def _close(self) -> None:
        self.is_dead = True
        self._replies.close()
        try:
            self._jobs.close()
        except BrokenPipeError:
            pass


def has_input(pipe: BinaryIO, *, timeout_s: float) -> bool:
    """Whether there is something to read, or the end of it, within the time; for descriptors of any number."""
    poll = select.poll()  # select() refuses those above 1023, and a trainer with many connections has such
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def serve_calls(function: Callable[..., Any], jobs: BinaryIO, replies: int, *, cpu_s: float, memory_bytes: int) -> None:
    """The child's life; it ends with its input and never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory_bytes,) * 2)
        for line in jobs:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            reply = _reply(function, line)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(replies, reply)
    finally:
        os._exit(0)


def _reply(function: Callable[..., Any], line: bytes) -> bytes:
    try:
        reply = {"value": function(*json.loads(line))}
    except MemoryError:
        gc.collect()
        reply = {"failure": MEMORY_LIMIT, "message": "its memory was used up"}
    except Exception as error:  # noqa: BLE001 - the caller decides what a bug of the function means
        reply = {"failure": ERROR, "message": f"{error!r:.500}"}
    return json.dumps(reply).encode() + b"\n"


def _address_space() -> int:
    """Bytes this process has mapped now."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _name(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


def keep(name: str, *, cpu_s: float, stall_s: float, memory_bytes: int, calls_per_child: int) -> None:
    """Answers lines of the input until it ends. ``name``: ``module:function``. Says first that it is ready."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the function prints is not a reply
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if warm_up := getattr(sys.modules[module], "warm_up", None):
        warm_up()
    gc.collect()
    gc.freeze()
    replies.write(b"{}\n")
    child = None
    for line in sys.stdin.buffer:
        child = child or Child(function, cpu_s=cpu_s, memory_bytes=memory_bytes)
        reply = child.call(line, stall_s=stall_s)
        replies.write(json.dumps(reply).encode() + b"\n")
        if not child.is_dead and child.num_calls >= calls_per_child:
            child.kill()  # caches of the function grow
        child = None if child.is_dead else child
    if child:
        child.kill()


def main() -> None:
    """``… module:function SETTINGS``, as the pool starts it."""
    keep(sys.argv[1], **json.loads(sys.argv[2]))
