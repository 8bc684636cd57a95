"""Servers of the tests as processes of their own: started, found by the port they print, killed, frozen."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from forked import ForkedProcess


class ServerProcess:
    """``python <script> --port <port> …`` in ``tests/contracts``; leaves with the block."""

    def __init__(self, script: str, *arguments: str, port: int = 0) -> None:
        self._process = ForkedProcess(HERE / script, "--port", str(port), *arguments)
        self._port: int | None = None

    @property
    def port(self) -> int:
        """Waits until the server listens."""
        if self._port is None:
            line = self._process.output.readline()
            assert line, f"the server ended with exit status {self._process.wait()}"
            self._port = int(line)
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """For whoever kills it from another process."""
        return self._process.pid

    def kill(self) -> None:
        """At once, as a machine that loses power."""
        self._process.kill()

    def freeze(self) -> None:
        """Connections stay open and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.output.close()
