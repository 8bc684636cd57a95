"""The interpreter of one rollout, seen from outside: cells go in, what they showed comes out, and a deadline kills it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_axpo.sandbox.policy import Layer, Policy
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.python import frames
from nemo_axpo.tools.python.process_handle import ProcessHandle
from nemo_axpo.tools.python.server_process import ServerProcess

_OPEN_TIMEOUT_S = 20.0
_BUFFER_BYTES = 2**20
"""Of what an interpreter sent and nobody read yet."""
_CREDENTIALS = struct.Struct("3i")
"""Process, user and group id, as the kernel attaches them to a message."""


@dataclass(frozen=True)
class CellResult:
    """What a cell showed; ``end`` says how it came to its end."""

    output: str = ""
    num_dropped: int = 0
    value: str = ""
    error: str = ""
    figures: tuple[bytes, ...] = ()
    """PNG files as the interpreter sent them: as untrusted as the cell."""
    end: str = "finished"
    """``finished``, ``timeout``, ``died`` (killed by a limit, or by itself) or ``garbled`` (it broke the channel)."""


class PythonSession:
    """Opened at the first cell, killed at a missed deadline, opened anew at the next cell."""

    def __init__(self, server: ServerProcess, *, policy: Policy, max_chars: int, can_fork: bool = False) -> None:
        """``max_chars``: of output, value and error, each. ``can_fork``: whether the policy's seccomp filter lets it."""
        self._can_fork, self._is_copy = can_fork, False
        self._server, self._policy, self._max_chars = server, policy, max_chars
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._process: ProcessHandle | None = None
        self._directory: Path | None = None
        self._ids = itertools.count()
        self._start = 0
        """Which start of the server forked the interpreter."""

    @property
    def is_open(self) -> bool:
        """Whether there is an interpreter, which may have died since the last call."""
        return self._writer is not None

    @property
    def image_directory(self) -> Path:
        """Files here can be read by the interpreter, at the same path; it is open."""
        assert self._directory is not None
        return self._directory / "images"

    @property
    def is_walled(self) -> bool:
        """Whether the interpreter can only read the files in ``image_directory``."""
        return bool(self._policy.layers & {Layer.NAMESPACES, Layer.LANDLOCK})

    async def open(self) -> None:
        """Forks the interpreter; ToolUnavailableError where that fails."""
        try:
            self._make_directory()
            ours, theirs = _channel()
        except OSError as error:
            self._drop()
            raise ToolUnavailableError(f"an interpreter of the python tool has no place ({error})") from error
        try:
            # A call that is cancelled meanwhile closes our end and removes the directory: what comes to be ends at once.
            await asyncio.to_thread(self._ask, self._request(), theirs)
            await self._adopt(ours)
        except BaseException:
            ours.close()
            self._drop()
            raise

    def _make_directory(self) -> None:
        self._directory = Path(tempfile.mkdtemp(dir=self._server.directory))
        for name in ("root", "images"):
            (self._directory / name).mkdir()
        self.image_directory.chmod(0o755)  # for the user that the interpreter becomes

    def _ask(self, request: dict[str, Any], channel: socket.socket) -> None:
        """In a thread: the server may have to start, or be busy."""
        with channel:
            self._server.start()
            self._start = self._server.num_starts
            self._server.open(request, channel=channel)

    async def run(self, code: str, *, images: Sequence[Path] = (), timeout_s: float) -> CellResult:
        """Runs a cell; ``images``: files in ``image_directory`` that appear in it first. The interpreter is gone unless it finished.

        ToolUnavailableError where the server died, and the interpreter with it: that is not the cell's doing.
        """
        if not self.is_open:
            await self.open()
        number = next(self._ids)
        message = {"id": number, "code": code, "images": [str(image) for image in images]}
        end = "died"
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(frames.encode(message))
                await self._writer.drain()
                return read_result(await self._receive(), number=number, max_chars=self._max_chars)
        except TimeoutError:
            end = "timeout"
        except (asyncio.IncompleteReadError, ConnectionError):
            end = "died"
        except ValueError:
            end = "garbled"
        except BaseException:  # cancelled from outside: what the cell does meanwhile is nobody's business any more
            self._drop()
            raise
        self._drop()
        if end == "died" and await self._server.has_died(self._start):
            raise ToolUnavailableError("the server of the python tool died, and this interpreter with it")
        return CellResult(end=end)

    async def fork(self) -> PythonSession:
        """A second interpreter with the state of this one; it ends with this one at the latest.

        ValueError where the policy allows no fork, ToolUnavailableError where it fails.
        """
        if not self._can_fork:
            raise ValueError("an interpreter can be forked where its seccomp filter allows it; open it with allow_fork")
        if not self.is_open:
            await self.open()
        copy = PythonSession(self._server, policy=self._policy, max_chars=self._max_chars, can_fork=True)
        copy._directory, copy._is_copy, copy._start = self._directory, True, self._start
        ours, theirs = _channel()
        with theirs:
            try:
                self._writer.write(frames.encode({"fork": f"fork_{next(self._ids)}"}))
                await self._writer.drain()
                socket.send_fds(_plain(self._writer), [b"f"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise ToolUnavailableError(f"an interpreter could not be forked ({error})") from error
        await copy._adopt(ours)
        return copy

    async def _adopt(self, channel: socket.socket) -> None:
        """Takes over the interpreter at the other end; the kernel tells whose its first message is."""
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                message, pid = await _first_message(channel)
            if "ready" not in message:
                raise ToolUnavailableError(f"an interpreter could not be shut in: {message.get('failed', 'it ended at once')}")
            self._process = ProcessHandle(pid)
            self._reader, self._writer = await asyncio.open_unix_connection(sock=channel, limit=_BUFFER_BYTES)
        except OSError as error:  # TimeoutError and ProcessLookupError too
            raise ToolUnavailableError(f"an interpreter of the python tool did not start ({error!r})") from error
        finally:
            if self._writer is None:
                channel.close()
                self.kill()

    def kill(self) -> None:
        """Ends every process of the interpreter at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def close(self) -> None:
        """Ends the interpreter and removes what it wrote; may be called twice."""
        self._drop()

    def _drop(self) -> None:
        self.kill()
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
        if self._directory is not None and not self._is_copy:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None

    def _request(self) -> dict[str, Any]:
        policy = self._policy
        return {
            "layers": sorted(policy.layers),
            "limits": asdict(policy.limits),
            "readable": (*policy.readable, str(self.image_directory)),
            "seccomp_filter": frames.pack_bytes(policy.seccomp_filter),
            "base": str(self._directory / "root"),
            "max_chars": self._max_chars,
        }

    async def _receive(self) -> dict[str, Any]:
        """ValueError for what is not a message: a cell can write into the channel."""
        (length,) = frames.HEADER.unpack(await self._reader.readexactly(frames.HEADER.size))
        if length > frames.MAX_FRAME_BYTES:
            raise ValueError(f"a message of {length} bytes")
        message = json.loads(await self._reader.readexactly(length))
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")  # noqa: TRY004 - the message is at fault, not the caller
        return message


def _channel() -> tuple[socket.socket, socket.socket]:
    """Our end, which is told who sends the first message, and the interpreter's."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.setblocking(False)
    return ours, theirs


def _plain(writer: asyncio.StreamWriter) -> socket.socket:
    """The socket behind a transport, for the call that asyncio does not offer."""
    return socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))


async def _first_message(channel: socket.socket) -> tuple[dict[str, Any], int]:
    """A short message and the process id of its sender, in this process's own numbering; no message where there is none."""
    loop = asyncio.get_running_loop()
    is_there = loop.create_future()
    loop.add_reader(channel, lambda: is_there.done() or is_there.set_result(None))
    try:
        await is_there
    finally:
        loop.remove_reader(channel)
    data, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    if len(data) <= frames.HEADER.size or not ancillary:
        return {}, 0
    pid, _, _ = _CREDENTIALS.unpack(ancillary[0][2][: _CREDENTIALS.size])
    return json.loads(data[frames.HEADER.size :]), pid


def read_result(message: dict[str, Any], *, number: int, max_chars: int) -> CellResult:
    """The reply to cell ``number``, every field checked and bounded; ValueError for anything else.

    A cell can forge a reply, and then sees its own forgery: nothing but the text of its observation hangs on it.
    """
    if message.get("id") != number:
        raise ValueError("a reply to another cell")
    texts = {name: message.get(name) for name in ("output", "value", "error")}
    figures, num_dropped = message.get("figures"), message.get("num_dropped")
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(num_dropped, int):
        raise ValueError("a reply with fields of other types")
    if not isinstance(figures, list) or not all(isinstance(figure, str) for figure in figures):
        raise ValueError("figures that are no strings")
    bounded = {name: text[:max_chars] for name, text in texts.items()}
    return CellResult(**bounded, num_dropped=num_dropped, figures=tuple(map(frames.unpack_bytes, figures)))
