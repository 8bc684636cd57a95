"""A tool that runs elsewhere: its calls go to a tool server, each rollout to one of them.

A server that cannot be reached, or lost the session, makes the rollout lost (it is retried, on another server), never wrong.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from nemo_axpo.data.images import ImageStore
from nemo_axpo.errors import rule_message
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.server.wire import TOKEN_VARIABLE, pack_image, unpack_result
from nemo_axpo.types import ImageId, ToolResult

_CONNECT_TIMEOUT_S = 5.0
_ATTEMPTS = 3
_PAUSE_S = 0.2
"""Before the second attempt; twice as long before the third."""


class RemoteTool:
    """One tool of one or more tool servers."""

    def __init__(
        self, name: str, *, urls: Sequence[str], image_store: ImageStore, timeout_s: float, token: str | None = None
    ) -> None:
        """Asks the first server for the schema. ``timeout_s``: of a call, the tool's own deadline included.

        ``token``: from the environment unless given. ValueError where it is not set, no server answers, or none has the tool.
        """
        token = token or os.environ.get(TOKEN_VARIABLE)
        if not token:
            cure = f"export {TOKEN_VARIABLE}=… as on the server"
            raise ValueError(rule_message(f"tools on servers need a token in {TOKEN_VARIABLE}", got="none", cure=cure))
        self.name, self._store, self._urls = name, image_store, tuple(url.rstrip("/") for url in urls)
        self._headers, self._timeout_s = {"Authorization": f"Bearer {token}"}, timeout_s
        self.schema = self._fetch_schema()
        self._turn = itertools.count()
        self._client: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, images: Sequence[ImageId]) -> _RemoteSession:
        """A session on the next server in turn; it is opened there with its first call."""
        return _RemoteSession(self, images, url=self._urls[next(self._turn) % len(self._urls)])

    async def send(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of an answer, asked for again where the connection fails. ToolUnavailableError for every failure."""
        for attempt in range(_ATTEMPTS):
            try:
                async with asyncio.timeout(self._timeout_s):
                    response = await self._of_loop().request(method, url, json=body, headers=self._headers)
                break
            except httpx2.TransportError as error:
                failure = f"{url} cannot be reached: {error or type(error).__name__}"
            except TimeoutError:
                raise ToolUnavailableError(f"{url} did not answer within {self._timeout_s:g} s") from None
            await asyncio.sleep(_PAUSE_S * 2**attempt)
        else:
            raise ToolUnavailableError(failure)
        return _read(response, url)

    def image(self, image_id: ImageId) -> str:
        """A stored image as the server reads it."""
        return pack_image(self._store.image(image_id))

    def result(self, body: dict[str, Any]) -> ToolResult:
        """The observation in an answer; its images are stored here. ToolUnavailableError where it is none."""
        try:
            return unpack_result(body, images=self._store)
        except ValueError as error:
            raise ToolUnavailableError(f"the tool server of {self.name} sent what is no observation: {error}") from error

    def _of_loop(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
            timeout = httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S)
            self._client, self._loop = httpx2.AsyncClient(limits=limits, timeout=timeout), loop
        return self._client

    def _fetch_schema(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for url in self._urls:
            try:
                response = httpx2.get(f"{url}/v1/tools", headers=self._headers, timeout=_CONNECT_TIMEOUT_S)
                schemas = {schema["function"]["name"]: schema for schema in _read(response, url)["tools"]}
            except (httpx2.HTTPError, ToolUnavailableError, KeyError, TypeError) as error:
                cure = "start it (nemo-axpo tool-server), or correct its address and token"
                raise ValueError(rule_message(f"the tool server {url} must answer", got=error or type(error).__name__, cure=cure)) from error
            if self.name not in schemas:
                cure = f"start it with tools.names=[{self.name}]"
                raise ValueError(rule_message(f"{url} must offer the tool {self.name}", got=", ".join(schemas) or "none", cure=cure))
            found = schemas[self.name]
        return found


class _RemoteSession:
    def __init__(self, tool: RemoteTool, images: Sequence[ImageId], *, url: str) -> None:
        self._tool, self._images, self._url = tool, images, url
        self._path: str | None = None
        self._num_sent = self._number = 0

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        if self._path is None:
            opened = await self._tool.send("POST", f"{self._url}/v1/sessions", {"tool": self._tool.name})
            self._path = f"{self._url}/v1/sessions/{opened['session']}"
        new = [self._tool.image(image_id) for image_id in self._images[self._num_sent :]]
        body = {"number": self._number, "arguments": arguments, "images": new}
        result = self._tool.result(await self._tool.send("POST", f"{self._path}/calls", body))
        self._number += 1
        # What the tool returned becomes an image of the rollout here, as it did there.
        self._num_sent = len(self._images) + len(result.image_ids)
        return result

    async def close(self) -> None:
        if self._path is not None:
            path, self._path = self._path, None
            try:
                await self._tool.send("DELETE", path)
            except ToolUnavailableError:
                pass  # it is closed there when it has been idle for long enough


def _read(response: httpx2.Response, url: str) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.status_code != 200 or not isinstance(body, dict):
        said = body.get("error") if isinstance(body, dict) else response.text[:200]
        raise ToolUnavailableError(f"{url} answered {response.status_code}: {said}")
    return body
