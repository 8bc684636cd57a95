"""The tool server: sessions of tools behind HTTP and a token. One process, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nemo_axpo.data.images import ImageStore
from nemo_axpo.tools.base import ToolSession, ToolUnavailableError
from nemo_axpo.tools.limits import CallLimit, CallSlots
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.tools.server.wire import pack_result, unpack_image
from nemo_axpo.types import ImageId

logger = logging.getLogger(__name__)
_SWEEP_EVERY_S = 10.0


@dataclass
class OpenSession:
    """One tool's state for one rollout of some client."""

    session: ToolSession
    images: list[ImageId]
    tool: str
    used_at: float = field(default_factory=time.monotonic)
    number: int = -1
    """Of the last call."""
    answer: dict[str, Any] = field(default_factory=dict)
    """To the last call, for a client that asks again."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of a tool server."""

    max_sessions: int = 1024
    idle_s: float = 900.0
    """A session that nobody used for so long is closed: its client is gone."""
    max_concurrent_calls: int = 16
    """Further calls wait."""


class ToolServer:
    """The tools of a registry, for clients that know the token."""

    def __init__(
        self,
        registry: ToolRegistry,
        *,
        images: ImageStore,
        token: str,
        limits: ServerLimits,
        of_tools: Mapping[str, CallLimit] | None = None,
    ) -> None:
        """``token``: what clients send as ``Authorization: Bearer``. ``of_tools``: limits of each tool's calls, of all clients."""
        self._registry, self._images, self._token, self._limits = registry, images, token, limits
        self._sessions: dict[str, OpenSession] = {}
        self._of_tools = CallSlots(of_tools or {})
        self._slots = asyncio.Semaphore(limits.max_concurrent_calls)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/v1/tools", self._guard(self._tools)),
            Route("/v1/sessions", self._guard(self._open), methods=["POST"]),
            Route("/v1/sessions/{session}/calls", self._guard(self._call), methods=["POST"]),
            Route("/v1/sessions/{session}", self._guard(self._close), methods=["DELETE"]),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeper.cancel()
            for session in list(self._sessions):
                await self._drop(session)

    def _guard(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return _failure(401, "the token is missing or wrong")
            return await handler(request)

        return guarded

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "sessions": len(self._sessions)})

    async def _tools(self, request: Request) -> Response:
        return JSONResponse({"tools": list(self._registry.schemas)})

    async def _open(self, request: Request) -> Response:
        body = await _body(request)
        name = body.get("tool")
        if name not in self._registry:
            return _failure(422, f"tool must be one of {', '.join(self._registry.names)}; got {name!r}")
        if len(self._sessions) >= self._limits.max_sessions:
            return _failure(503, f"{len(self._sessions)} sessions are open, no more are allowed")
        images: list[ImageId] = []
        key = secrets.token_urlsafe(16)
        self._sessions[key] = OpenSession(self._registry[name].open(images), images, name)
        return JSONResponse({"session": key})

    async def _call(self, request: Request) -> Response:
        opened = self._sessions.get(request.path_params["session"])
        if opened is None:
            return _failure(404, "the session is gone")
        body = await _body(request)
        async with opened.lock:
            opened.used_at = time.monotonic()
            if body.get("number") == opened.number:
                return JSONResponse(opened.answer)
            if problem := self._problem(body, opened):
                return _failure(422, problem)
            return await self._execute(opened, body)

    async def _execute(self, opened: OpenSession, body: Mapping[str, Any]) -> Response:
        try:
            opened.images += [self._images.add(unpack_image(picture)) for picture in body["images"]]
        except ValueError as error:
            return _failure(422, f"an image cannot be read: {error}")
        try:
            async with self._of_tools.slot(opened.tool), self._slots:
                result = await opened.session.call(body["arguments"])
        except ToolUnavailableError as error:
            return _failure(503, str(error))
        opened.images += result.image_ids
        opened.number, opened.answer = body["number"], pack_result(result, images=self._images)
        opened.used_at = time.monotonic()
        self._images.retain({image for one in self._sessions.values() for image in one.images})
        return JSONResponse(opened.answer)

    def _problem(self, body: Mapping[str, Any], opened: OpenSession) -> str:
        if body.get("number") != opened.number + 1:
            return f"call {opened.number + 1} is next; got {body.get('number')!r}"
        if not isinstance(body.get("arguments"), dict) or not isinstance(body.get("images"), list):
            return "a call has arguments (an object) and images (a list)"
        return self._registry.argument_error(opened.tool, body["arguments"])

    async def _close(self, request: Request) -> Response:
        await self._drop(request.path_params["session"])
        return JSONResponse({})

    async def _drop(self, key: str) -> None:
        opened = self._sessions.pop(key, None)
        if opened is not None:
            await opened.session.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_EVERY_S, self._limits.idle_s))
            now = time.monotonic()
            idle = [
                key
                for key, one in self._sessions.items()
                if not one.lock.locked() and now - one.used_at > self._limits.idle_s
            ]
            for key in idle:
                logger.warning("a session of %s was idle for %g s and is closed", self._sessions[key].tool, self._limits.idle_s)
                await self._drop(key)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _failure(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)
