"""Processes of the tests, forked from one that has loaded torch, transformers and megatron: that takes each seconds otherwise.

A forked process is one of its own in every other respect: its environment, its output, its signals and its end.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

TESTS = Path(__file__).parent
COMMAND = TESTS / "command.py"
"""The script whose command line is that of ``nemo-axpo``."""
_LOADED = ["nemo_axpo.train", "nemo_axpo.actors.actor", "nemo_axpo.engines.hf.engine"]
_GRACE_S = 10.0
"""How long the other ranks of a job may live on when one has failed; torchrun ends them too."""


class ForkedProcess:
    """``main`` of a Python file, whose command line is ``arguments``."""

    def __init__(
        self,
        script: Path,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """``log``: file to which it adds what it writes; None: stdout is read from :attr:`output`, stderr is ours."""
        words, variables = [str(script), *map(str, arguments)], {**os.environ, **(environment or {})}
        reader, writer = (None, None) if log else context().Pipe(duplex=False)
        self._process = context().Process(target=_run, args=(words, variables, log or writer))
        self._process.start()
        if reader is not None:
            writer.close()
            self.output = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
            reader.close()

    @property
    def pid(self) -> int:
        """For whoever kills it from another process."""
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """Ready when the process has ended."""
        return self._process.sentinel

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit status, as of :class:`subprocess.Popen`; None where it still runs."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def kill(self) -> None:
        """At once, as a machine that loses power; nothing happens where it has ended."""
        self._process.kill()
        self._process.join()

    def send_signal(self, number: signal.Signals) -> None:
        """While it runs."""
        os.kill(self.pid, number)


def run_forked(script: Path, *arguments: str | Path, timeout_s: float = 580) -> subprocess.CompletedProcess[str]:
    """Runs ``main`` of a file; stdout and stderr together are its ``stderr``."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        process = ForkedProcess(script, *arguments, log=log)
        status = process.wait(timeout_s)
        process.kill()
        said = log.read_text(encoding="utf-8", errors="replace")
    assert status is not None, f"it did not end in {timeout_s} s:\n{said}"
    return subprocess.CompletedProcess([str(script), *map(str, arguments)], status, said, said)


def run_ranks(
    num_ranks: int, script: Path, *arguments: str | Path, timeout_s: float = 580
) -> subprocess.CompletedProcess[str]:
    """The same in gloo ranks; the status is that of the rank that failed first, or 0."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        ranks = start_ranks(num_ranks, script, *arguments, log=log)
        try:
            status = _status(ranks, deadline=time.monotonic() + timeout_s)
        finally:
            for rank in ranks:
                rank.kill()
        said = log.read_text(encoding="utf-8", errors="replace")
    return subprocess.CompletedProcess([str(script), *map(str, arguments)], status, said, said)


def start_ranks(num_ranks: int, script: Path, *arguments: str | Path, log: Path) -> list[ForkedProcess]:
    """Ranks with torchrun's variables, which all write to ``log``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    log.touch()
    return [
        ForkedProcess(script, *arguments, environment=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, log=log)
        for rank in range(num_ranks)
    ]


def _status(processes: Sequence[ForkedProcess], *, deadline: float) -> int:
    running, failed = {process.sentinel: process for process in processes}, 0
    while running:
        ended = connection.wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        if not ended:
            break
        for sentinel in ended:
            status = running.pop(sentinel).wait()
            if status and not failed:
                failed, deadline = status, min(deadline, time.monotonic() + _GRACE_S)
    assert failed or not running, "it did not end in time"
    return failed


@cache
def context() -> ForkServerContext:
    """Of processes that are forked so; the server starts at the first use and ends with this process."""
    from multiprocessing import forkserver

    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_LOADED)
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    with _variables({"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()
    return found


@contextlib.contextmanager
def _variables(changed: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _run(words: list[str], variables: dict[str, str], output: connection.Connection | Path) -> None:
    """Life of a forked process."""
    os.environ.clear()
    os.environ.update(variables)
    with output.open("ab") if isinstance(output, Path) else output as file:
        os.dup2(file.fileno(), 1)
        if isinstance(output, Path):
            os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    import torch

    torch.set_num_threads(1)
    sys.argv = words
    script = Path(words[0])
    sys.path.insert(0, str(script.parent))
    sys.exit(importlib.import_module(script.stem).main())
