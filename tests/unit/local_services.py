"""Real HTTP services on this host, whose answers a test scripts."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Reply:
    """What the service answers: JSON, or bytes as they are."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


class Service:
    """A running service; ``asked`` are its requests."""

    def __init__(self, script: Callable[[Asked], Reply]) -> None:
        self.asked: list[Asked] = []
        self.num_at_once = self.max_at_once = 0
        self._script, self._lock = script, threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        asked = Asked(handler.path, {k.lower(): v for k, v in handler.headers.items()}, body)
        with self._lock:
            self.asked.append(asked)
            self.num_at_once += 1
            self.max_at_once = max(self.max_at_once, self.num_at_once)
            reply = self._script(asked)
        time.sleep(reply.delay_s)
        with self._lock:
            self.num_at_once -= 1
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            handler.send_response(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)

    def close(self) -> None:
        """Stops listening; further requests are refused by the system."""
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def running(script: Callable[[Asked], Reply]) -> Iterator[Service]:
    """A service for as long as the block lasts."""
    service = Service(script)
    try:
        yield service
    finally:
        service.close()


def in_turn(*replies: Reply) -> Callable[[Asked], Reply]:
    """One reply after the other; the last one for ever."""
    left = list(replies)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]
