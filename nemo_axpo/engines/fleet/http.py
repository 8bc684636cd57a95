"""HTTP to one generation server: sampling from whichever event loop runs, control calls from any thread.

What goes wrong keeps its meaning: a server that cannot be reached or does not answer in time is ServerDownError, an answer
that refuses the request is ValueError with the server's own words, every other failure is EngineError.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.protocol import ServerDownError

_REFUSALS = (400, 413, 422)
"""The request's own fault, on every server alike."""
_UNAVAILABLE = (502, 503, 504)
_MAX_QUOTED_CHARS = 500


class HttpConnection:
    """Connections to one server, kept open between calls."""

    def __init__(self, url: str, *, control_timeout_s: float) -> None:
        """``control_timeout_s``: of calls that name no timeout of their own."""
        self.url = url.rstrip("/")
        self._control_timeout_s = control_timeout_s
        self._sync = httpx2.Client(base_url=self.url, timeout=control_timeout_s)
        self._async: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The JSON that ``path`` answers. Cancelling the call closes its connection, which tells the server."""
        with _failures(self.url, path, timeout_s=timeout_s):
            async with asyncio.timeout(timeout_s):
                response = await self._client().post(path, json=body)
        return _read(response, self.url, path)

    def call(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:  # fmt: skip
        """The JSON that ``path`` answers, None where it answers nothing; from synchronous code."""
        timeout_s = timeout_s or self._control_timeout_s
        headers = {"Content-Type": "application/json", **(headers or {})} if body else headers
        with _failures(self.url, path, timeout_s=timeout_s):
            response = self._sync.request(method, path, content=body or None, headers=headers, timeout=timeout_s)
        return _read(response, self.url, path)

    async def close(self) -> None:
        """Closes all connections."""
        self._sync.close()
        if self._async is not None and self._loop is asyncio.get_running_loop():
            await self._async.aclose()
        self._async = None

    def _client(self) -> httpx2.AsyncClient:
        """The client of the running event loop: connections belong to the loop that opened them."""
        loop = asyncio.get_running_loop()
        if self._async is None or self._loop is not loop:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
            self._async = httpx2.AsyncClient(base_url=self.url, timeout=None, limits=limits)
            self._loop = loop
        return self._async


@contextlib.contextmanager
def _failures(url: str, path: str, *, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, httpx2.TimeoutException) as error:
        raise ServerDownError(f"{url}{path} did not answer within {timeout_s:g} s") from error
    except httpx2.TransportError as error:
        raise ServerDownError(f"{url}{path} cannot be reached: {error or type(error).__name__}") from error


def _read(response: httpx2.Response, url: str, path: str) -> Any:
    status = response.status_code
    if status == 200:
        try:
            return response.json() if response.content else None
        except json.JSONDecodeError:
            return None  # health routes answer in plain words
    said = _message(response)
    if status in _REFUSALS:
        raise ValueError(f"{url}{path} refused the request ({status}): {said}")
    if status in _UNAVAILABLE:
        raise ServerDownError(f"{url}{path} is not available ({status}): {said}")
    raise EngineError(f"{url}{path} failed ({status}): {said}")


def _message(response: httpx2.Response) -> str:
    """What the server says is wrong, in the forms that OpenAI-like servers use; cut to a readable length."""
    try:
        body = response.json()
    except json.JSONDecodeError:
        body = response.text
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    return str(body)[:_MAX_QUOTED_CHARS]
