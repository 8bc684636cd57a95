"""The outside that escape attempts reach for, and who judges them: from outside, and by a fresh interpreter afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_axpo.sandbox.policy import Policy
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.python.escapes import PROOF, Attempt
from nemo_axpo.tools.python.server_process import ServerProcess
from nemo_axpo.tools.python.session import CellResult, PythonSession

SECRET_VARIABLE = "NEMO_AXPO_ESCAPE_SECRET"
_DEADLINE_S = 2.0
_MAX_CHARS = 2000
_AFTER_S = 1.8
"""What a daemon needs to show itself."""
_ARRIVAL_S = 0.1
"""What a datagram needs to be read."""


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt."""

    name: str
    kind: str
    breach: str
    """What it reached; empty where it was contained."""
    end: str
    """How its cell ended."""


class EscapeStage:
    """Files, processes and servers outside. One at a time in a process: it sets an environment variable."""

    def __init__(self) -> None:
        self._tag = secrets.token_hex(4)
        self._directory = Path(tempfile.mkdtemp(prefix="nemo-axpo-outside-"))
        self._received: list[str] = []
        self._sockets: list[socket.socket] = []
        os.environ[SECRET_VARIABLE] = env_secret = secrets.token_hex(16)
        (self._directory / "secret").write_text("a secret")
        self.goals = {
            "secret": str(self._directory / "secret"),
            "directory": str(self._directory),
            "target": str(self._directory / "target"),
            "victim_file": str(self._directory / "victim"),
            "shm": f"/dev/shm/escape-{self._tag}",
            "tmp": f"/tmp/escape-{self._tag}",
            "tag": self._tag,
            "env_secret": env_secret,
            "env_secret_reversed": env_secret[::-1],
            "abstract": f"escape-{self._tag}",
            "socket_file": str(self._directory / "socket"),
        }
        self.goals |= {"port": self._listen(), "udp_port": self._listen_for_datagrams()}
        self._reset()

    def close(self) -> None:
        """Removes everything."""
        self._victim.kill()
        self._victim.wait()
        for server in self._sockets:
            server.close()
        os.environ.pop(SECRET_VARIABLE, None)
        shutil.rmtree(self._directory, ignore_errors=True)

    def breach(self) -> str:
        """What was reached since the last call, as seen from here; empty for nothing. Puts it back in order."""
        victim_file = Path(self.goals["victim_file"])
        signs = {
            "a file was written": any(Path(self.goals[name]).exists() for name in ("target", "shm", "tmp")),
            "a file was changed": not victim_file.exists() or victim_file.read_text() != "unharmed",
            "rights were changed": victim_file.exists() and victim_file.stat().st_mode & 0o777 != 0o600,
            "a process was killed": self._victim.poll() is not None,
            "a message arrived": bool(self._received),
        }
        found = [sign for sign, is_seen in signs.items() if is_seen]
        if found:
            self._reset()
        return ", ".join(found)

    def _reset(self) -> None:
        for name in ("target", "shm", "tmp"):
            Path(self.goals[name]).unlink(missing_ok=True)
        victim_file = Path(self.goals["victim_file"])
        victim_file.unlink(missing_ok=True)
        victim_file.write_text("unharmed")
        victim_file.chmod(0o600)
        self._received.clear()
        victim = self.__dict__.get("_victim")
        if victim is None or victim.poll() is not None:
            self._victim = subprocess.Popen(["sleep", "3600"])
            self.goals["victim"] = self._victim.pid

    def _listen(self) -> int:
        servers = [socket.create_server(("127.0.0.1", 0))]
        for address in (f"\0{self.goals['abstract']}", self.goals["socket_file"]):
            server = socket.socket(socket.AF_UNIX)
            server.bind(address)
            server.listen()
            servers.append(server)
        self._sockets += servers
        return servers[0].getsockname()[1]

    def _listen_for_datagrams(self) -> int:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        self._sockets.append(server)
        threading.Thread(target=self._take_datagrams, args=(server,), daemon=True).start()
        return server.getsockname()[1]

    def _take_datagrams(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(16):
                self._received.append(data.decode())


@contextlib.contextmanager
def open_stage() -> Iterator[tuple[EscapeStage, ServerProcess]]:
    """A stage and a warm server that was started beside it."""
    stage, server = EscapeStage(), ServerProcess()
    try:
        server.start()
        yield stage, server
    finally:
        server.close()
        stage.close()


async def attempt_all(
    attempts: Sequence[Attempt], *, policy: Policy, stage: EscapeStage, server: ServerProcess
) -> tuple[Outcome, ...]:
    """One after the other, each in a fresh interpreter."""
    return tuple([await _attempt(one, policy=policy, stage=stage, server=server) for one in attempts])


async def _attempt(attempt: Attempt, *, policy: Policy, stage: EscapeStage, server: ServerProcess) -> Outcome:
    session = PythonSession(server, policy=policy, max_chars=_MAX_CHARS)
    started = time.monotonic()
    try:
        result = await session.run(attempt.cell(stage.goals), timeout_s=_DEADLINE_S)
    except ToolUnavailableError as error:
        return Outcome(attempt.name, attempt.kind, f"the tool failed: {error}", "failed")
    took_s = time.monotonic() - started
    await session.close()
    is_daemon = "daemon" in attempt.name or "leave one" in attempt.name
    await asyncio.sleep(_AFTER_S if is_daemon else _ARRIVAL_S if attempt.kind == "network" else 0)
    seen = [
        "reached" if _is_proven(result) else "",
        stage.breach(),
        "the deadline was missed" if took_s > _DEADLINE_S + 1 else "",
        await _harm(policy, server=server, tag=stage.goals["tag"]),
    ]
    return Outcome(attempt.name, attempt.kind, ", ".join(filter(None, seen)), result.end)


def _is_proven(result: CellResult) -> bool:
    return any(PROOF in text for text in (result.output, result.value))


async def _harm(policy: Policy, *, server: ServerProcess, tag: object) -> str:
    """What the next rollout notices of it; nothing, if all is well."""
    fresh = PythonSession(server, policy=policy, max_chars=_MAX_CHARS)
    try:
        result = await fresh.run(f"import builtins, json\n6 * 7, hasattr(builtins, 'mark_{tag}')", timeout_s=10)
    except ToolUnavailableError as error:
        return f"the server is gone ({error})"
    finally:
        await fresh.close()
    if result.value != "(42, False)":
        return f"the next rollout sees {result.value or result.error or result.end}"
    return await _left_behind(server)


async def _left_behind(server: ServerProcess) -> str:
    """Processes that outlive their session: forks have the command line of the server."""
    for _ in range(40):
        if (count := server.num_forks()) == 0:
            return ""
        await asyncio.sleep(0.05)
    return f"{count} processes were left behind"
