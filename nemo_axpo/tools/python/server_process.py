"""Starts the warm fork server and hands it the channels of new interpreters."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import nemo_axpo
from nemo_axpo.tools.base import ToolUnavailableError

_START_TIMEOUT_S = 120.0
_REQUEST_TIMEOUT_S = 20.0
_DEATH_S = 0.05
"""What the end of the server needs to be seen, after that of its interpreters was."""
_ENTRY = "import sys; sys.path[:0] = [sys.argv[2]]; from nemo_axpo.tools.python.fork_server import serve; serve(int(sys.argv[1]))"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    # One thread: idle threads of a BLAS do not survive a fork. Fixed hashes: the order of a set is the same in every rollout.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONMALLOC": "malloc",  # one heap (heap.py)
}


class ServerProcess:
    """The fork server; started at the first use and again when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._lock = threading.Lock()
        self.num_starts = 0
        self._directory = Path(tempfile.mkdtemp(prefix="nemo-axpo-python-"))
        atexit.register(self.close)

    @property
    def directory(self) -> Path:
        """Where sessions have their base directories."""
        return self._directory

    def start(self) -> None:
        """Returns when its imports are done. ToolUnavailableError where it does not come up."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def _start(self) -> None:
        self._forget()
        self.num_starts += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [sys.executable, "-s", "-P", "-c", _ENTRY, str(theirs.fileno()), str(_import_root()), str(self._directory)]
        log = (self._directory / "server.log").open("wb")
        with theirs, log:
            self._process = subprocess.Popen(
                arguments,
                env=_ENVIRONMENT | {"MPLCONFIGDIR": str(self._directory)},
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._requests = ours
        self._await_ready()

    def _await_ready(self) -> None:
        self._requests.settimeout(_START_TIMEOUT_S)
        try:
            is_ready = bool(self._requests.recv(1024))
        except TimeoutError:
            is_ready = False
        if not is_ready:
            said = (self._directory / "server.log").read_text(errors="replace")[-1000:]
            self._forget()
            raise ToolUnavailableError(f"the server of the python tool did not start; it said: {said or 'nothing'}")
        self._requests.settimeout(_REQUEST_TIMEOUT_S)

    def open(self, request: dict[str, Any], *, channel: socket.socket) -> None:
        """Has an interpreter forked that serves ``channel``; waits while many others ask too.

        ToolUnavailableError where the server is not running, or does not come to it.
        """
        requests = self._requests
        try:
            if requests is None:
                raise ConnectionError("it is not running")
            socket.send_fds(requests, [json.dumps(request).encode()], [channel.fileno()])
        except OSError as error:
            raise ToolUnavailableError(f"the server of the python tool takes no interpreter ({error})") from error

    async def has_died(self, start: int) -> bool:
        """Whether the process of that start is gone, for one who saw an interpreter end: they end a moment before it is seen to."""
        process = self._process
        if start == self.num_starts and process is not None and process.poll() is None:
            await asyncio.sleep(_DEATH_S)
        return start != self.num_starts or process is None or process.poll() is not None

    def num_forks(self) -> int:
        """Processes on this machine that were forked from the server, by their command line, which names its directory."""
        own = Path(f"/proc/{self._process.pid}/cmdline").read_bytes()
        count = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                count += path.read_bytes() == own
        return count - 1

    def close(self) -> None:
        """Ends the server and every interpreter that was forked from it; may be called twice."""
        self._forget()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _forget(self) -> None:
        """Kills first: a server that sees the connection end removes the directory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._requests is not None:
            self._requests.close()
        self._process = self._requests = None


def _import_root() -> Path:
    return Path(nemo_axpo.__file__).parent.parent


def readable_paths() -> tuple[str, ...]:
    """What an interpreter needs to see: the system's libraries and this Python's, nothing of the project or its user."""
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc/localtime", "/etc/ssl/openssl.cnf", "/dev/null", "/dev/urandom"]
    python = [path for path in sys.path if path and _is_library(path)]
    chosen = list(system)
    for root in map(os.path.realpath, [sys.prefix, sys.base_prefix, *python]):
        if not any(Path(root).is_relative_to(path) for path in chosen):
            chosen.append(root)
    return tuple(chosen)


def _is_library(path: str) -> bool:
    return Path(path).name in ("site-packages", "dist-packages", "lib-dynload") and Path(path).is_dir()
