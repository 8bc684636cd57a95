"""JSON over HTTP to a service that may be busy or down: timeouts, retries with growing pauses, and two kinds of failure.

    408, 429, 5xx, no connection, no answer in time, an answer that is not JSON    asked again, then RemoteUnavailableError
    any other status                                                              RemoteRefusedError at once

The key travels in a header alone and is struck out of what the service says, so that no log or message ever holds it.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from nemo_axpo.errors import rule_message
from nemo_axpo.remote.pace import Pace

_MAX_QUOTED_CHARS = 300
logger = logging.getLogger(__name__)


class RemoteUnavailableError(RuntimeError):
    """The service is down, busy or out of its mind, also after the retries."""


class RemoteRefusedError(RuntimeError):
    """The service does not take this request, or this key."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RetrySettings:
    """How long a service is waited for."""

    timeout_s: float = 60.0
    """Of one attempt."""
    max_retries: int = 4
    """Further attempts."""
    max_time_s: float = 300.0
    """Of all attempts together, pauses and waiting for a turn included."""
    first_delay_s: float = 1.0
    """Before the first retry; it doubles with every further one."""
    max_delay_s: float = 30.0

    def __post_init__(self) -> None:
        if min(self.timeout_s, self.max_time_s) <= 0 or min(self.max_retries, self.first_delay_s) < 0:
            rule = "timeouts must be positive and retries not negative"
            raise ValueError(rule_message(rule, got=self, cure="correct them"))


class JsonClient:
    """POSTs JSON to one service; connections are kept between calls and belong to the event loop that opened them."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        retry: RetrySettings | None = None,
        pace: Pace | None = None,
        max_concurrent: int = 32,
    ) -> None:
        """``key``: sent as a bearer token. ``max_concurrent``: requests on their way at the same time."""
        self.url = url.rstrip("/")
        self._key, self._max_concurrent = key, max_concurrent
        self._retry, self._pace = retry or RetrySettings(), pace or Pace(None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx2.AsyncClient | None = None
        self._places: asyncio.Semaphore | None = None
        self._jitter = random.Random()  # not the global one, whose state belongs to the run

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that ``path`` answers."""
        try:
            async with asyncio.timeout(self._retry.max_time_s):
                return await self._post(path, body)
        except TimeoutError as error:
            message = f"{self.url}{path} gave no answer within {self._retry.max_time_s:g} s, retries included"
            raise RemoteUnavailableError(message) from error

    async def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = self._loop = None

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        client, places = self._of_this_loop()
        problem = ""
        for attempt in range(1 + self._retry.max_retries):
            if attempt:
                await asyncio.sleep(self._delay_s(attempt))
            async with places:
                await self._pace.wait()
                problem, answer = await self._attempt(client, path, body)
            if not problem:
                return answer
            logger.info("attempt %d: %s", attempt + 1, problem)
        raise RemoteUnavailableError(f"{problem}, in {1 + self._retry.max_retries} attempts")

    async def _attempt(self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> tuple[str, Any]:
        """What was wrong, empty where nothing was; and the answer."""
        where = f"{self.url}{path}"
        try:
            async with asyncio.timeout(self._retry.timeout_s):
                response = await client.post(self.url + path, content=_encode(body), headers=self._headers())
        except (TimeoutError, httpx2.TimeoutException):
            return f"{where} did not answer within {self._retry.timeout_s:g} s", None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return f"{where} cannot be reached: {self._clean(str(error)) or type(error).__name__}", None
        status = response.status_code
        if status == 200:
            try:
                return "", response.json()
            except (ValueError, RecursionError):
                return f"{where} answered something that is not JSON: {self._clean(response.text)!r}", None
        said = f"{where} answered {status}: {self._clean(_message(response))}"
        if status in (408, 429) or status >= 500:
            self._pace.pause(min(_retry_after_s(response), self._retry.max_delay_s))
            return said, None
        raise RemoteRefusedError(said, status=status)

    def _headers(self) -> dict[str, str]:
        kind = {"Content-Type": "application/json"}
        return kind | {"Authorization": f"Bearer {self._key}"} if self._key else kind

    def _clean(self, text: str) -> str:
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text[:_MAX_QUOTED_CHARS].split())

    def _delay_s(self, attempt: int) -> float:
        longest = min(self._retry.max_delay_s, self._retry.first_delay_s * 2 ** (attempt - 1))
        return longest * self._jitter.uniform(0.5, 1.0)  # so that many rollouts do not come back in one instant

    def _of_this_loop(self) -> tuple[httpx2.AsyncClient, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=self._max_concurrent)
            self._client = httpx2.AsyncClient(timeout=None, limits=limits)
            self._places, self._loop = asyncio.Semaphore(self._max_concurrent), loop
        return self._client, self._places


def _encode(body: Mapping[str, Any]) -> bytes:
    """JSON in ASCII, which has a form for every string, half surrogate pairs included."""
    return json.dumps(dict(body), allow_nan=False).encode("ascii")


def _retry_after_s(response: httpx2.Response) -> float:
    """Seconds that the service asks to wait; 0 where it names none."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _message(response: httpx2.Response) -> str:
    """What the service says is wrong, in the forms that such services use."""
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        body = response.text
    for key in ("detail", "error", "message"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    return str(body)
