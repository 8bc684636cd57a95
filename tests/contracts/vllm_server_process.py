"""vLLM's own server as a process of the tests: started on a CPU, killed, started again on the same port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx2
from engine_suite import MAX_MODEL_LEN

SERVED_MODEL = "contract"
_STARTS_WITHIN_S = 240
_ENDS_WITHIN_S = 60


class VllmServerProcess:
    """Serves ``checkpoint``; starts at once and is waited for with :meth:`wait_until_up`; leaves with the block."""

    def __init__(
        self, checkpoint: Path, *, log: Path, max_model_len: int = MAX_MODEL_LEN, python: str | Path = sys.executable
    ) -> None:
        """``log``: what the server says, quoted where it does not start. ``python``: of an environment with vLLM."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._checkpoint, self._log, self._max_model_len = checkpoint, log, max_model_len
        self._python = str(python)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """With weights of its own making, on the port it had before."""
        command = [
            self._python, "-m", "nemo_axpo.engines.vllm_server.launch", "--checkpoint", str(self._checkpoint),
            "--port", str(self._port), "--device", "cpu", "--dtype", "float32",
            "--max-model-len", str(self._max_model_len), "--max-num-seqs", "32", "--kv-cache-mib", "64",
            "--served-model-name", SERVED_MODEL,
        ]  # fmt: skip
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def wait_until_up(self) -> None:
        """AssertionError with the end of its log when it ends or takes too long."""
        for _ in range(_STARTS_WITHIN_S):
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(1)
        raise AssertionError(f"no server after {_STARTS_WITHIN_S} s: {self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        """At once, with its workers, as a machine that loses power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_ENDS_WITHIN_S)
        self.kill()
