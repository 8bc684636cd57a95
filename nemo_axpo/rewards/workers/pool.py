"""A function called in worker processes, with a deadline: whatever its arguments do, the caller gets an answer.

The processes are started by exec (the trainer is never forked), at the first call; one that is gone is started again.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemo_axpo
from nemo_axpo.errors import rule_message
from nemo_axpo.rewards.base import VerifierUnavailableError
from nemo_axpo.rewards.workers.keeper import CPU_LIMIT, MEMORY_LIMIT, has_input

_ENTRY = "import sys; sys.path[:0] = [sys.argv.pop(1)]; from nemo_axpo.rewards.workers import keeper; keeper.main()"
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "HOME")
"""Environment of a worker; keys and tokens of the run are none of its business."""
_FIXED = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
_START_TIMEOUT_S = 120.0
_PATIENCE_S = 0.5
"""For a worker to end by itself; one that computes does not."""


class CallTooHardError(RuntimeError):
    """The function used up its CPU time or memory: these arguments can have no value."""


@dataclass(frozen=True)
class CallLimits:
    """Bounds of one call."""

    cpu_s: float = 3.0
    """CPU seconds; then the arguments are too hard."""
    stall_s: float = 60.0
    """Wall seconds; then the machine is too busy, which says nothing of the arguments."""
    memory_mib: int = 1024
    """Address space on top of what the warm process has."""
    calls_per_process: int = 1000
    """Calls after which a process is replaced, because caches grow."""

    def __post_init__(self) -> None:
        if min(self.cpu_s, self.stall_s, self.memory_mib, self.calls_per_process) <= 0 or self.stall_s <= self.cpu_s:
            rule = "limits of a verifier's calls must be positive, and stall_s above cpu_s"
            raise ValueError(rule_message(rule, got=self, cure="raise them"))


class WorkerPool:
    """Calls ``module:function`` with JSON arguments in ``num_workers`` processes."""

    def __init__(self, function: str, *, num_workers: int, limits: CallLimits | None = None) -> None:
        if num_workers < 1:
            raise ValueError(rule_message("a verifier needs workers", got=num_workers, cure="use at least 1"))
        self._function, self._num_workers = function, num_workers
        self._limits = limits or CallLimits()
        self._threads: ThreadPoolExecutor | None = None
        self._own = threading.local()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        """Calls by how they ended: ``value`` or a failure of the keeper's."""

    async def call(self, *arguments: Any) -> Any:
        """The function's value.

        CallTooHardError where the arguments use up the limits, VerifierUnavailableError where the worker fails otherwise.
        """
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._num_workers, thread_name_prefix="verifier")
                atexit.register(self.close)
            running = self._threads.submit(self._call, json.dumps(arguments).encode() + b"\n")
        reply = await asyncio.wrap_future(running)
        self.outcomes[reply.get("failure", "value")] += 1
        if "value" in reply:
            return reply["value"]
        message = f"{self._function}: {reply['message']}"
        raise (CallTooHardError if reply["failure"] in (CPU_LIMIT, MEMORY_LIMIT) else VerifierUnavailableError)(message)

    def close(self) -> None:
        """Kills the processes, whatever they do; the next call starts new ones."""
        with self._lock:
            threads, workers, self._threads, self._workers = self._threads, self._workers, None, []
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            worker.kill(patience_s=_PATIENCE_S)
        if threads is not None:
            threads.shutdown(cancel_futures=True)
            atexit.unregister(self.close)
        for worker in workers:
            worker.release()

    def _call(self, line: bytes) -> dict[str, Any]:
        """One call by this thread's worker."""
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None or not worker.is_alive:
            self._own.worker = worker = _Worker(self._function, limits=self._limits)
            with self._lock:
                self._workers = [other for other in self._workers if other.is_alive] + [worker]
        try:
            return worker.call(line)
        except VerifierUnavailableError as error:
            worker.kill()
            worker.release()
            return {"failure": "worker", "message": str(error)}


class _Worker:
    """A keeper process as one thread talks to it."""

    def __init__(self, function: str, *, limits: CallLimits) -> None:
        settings = {
            "cpu_s": limits.cpu_s,
            "stall_s": limits.stall_s,
            "memory_bytes": limits.memory_mib * 2**20,
            "calls_per_child": limits.calls_per_process,
        }
        self._answer_s = limits.stall_s + 30.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        root = str(Path(nemo_axpo.__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _ENTRY, root, function, json.dumps(settings)],
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _FIXED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self._is_ready = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call(self, line: bytes) -> dict[str, Any]:
        """VerifierUnavailableError where the process does not answer; it must then be killed."""
        if not self._is_ready:
            self._read(_START_TIMEOUT_S)
            self._is_ready = True
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: the pool was closed meanwhile
            raise VerifierUnavailableError(f"the worker process is gone ({error})") from error
        return self._read(self._answer_s)

    def _read(self, timeout_s: float) -> dict[str, Any]:
        replies = self._process.stdout
        line = replies.readline() if has_input(replies, timeout_s=timeout_s) else b""
        if not line.endswith(b"\n"):
            self._log.seek(0)
            said = self._log.read()[-1000:].decode(errors="replace").strip()
            raise VerifierUnavailableError(f"the worker process does not answer; it said: {said or 'nothing'}")
        return json.loads(line)

    def ask_to_end(self) -> None:
        """A keeper without a call ends by itself, and its child with it."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def kill(self, *, patience_s: float = 0.0) -> None:
        """Ends the keeper and its child; may be called twice, and from another thread than the one that waits for it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        if self._process.poll() is None:  # not reaped, so the group is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def release(self) -> None:
        """Closes the pipes of a killed process, when no thread waits for it any more."""
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                pipe.close()
