"""Answers of a service on disk, by what was asked: the same question is asked, and paid for, once.

One file an answer, ``<directory>/<first two digits>/<sha256 of the request>.json``, written whole or not at all, so that any
number of processes may share a directory. Each holds the request too: a cache can be read, and a run repeated from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class AnswerCache:
    """Reads what is there, asks for what is not; who asks the same at the same time shares one request."""

    def __init__(self, directory: str | Path | None) -> None:
        """``directory``: None keeps nothing, and still shares."""
        self._directory = Path(directory) if directory is not None else None
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def get(self, request: Any, *, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The kept answer to ``request`` (plain JSON), or what ``ask`` returns, which is kept. Failures are not kept."""
        key = hashlib.sha256(_canonical(request)).hexdigest()
        if (kept := self._read(key, request)) is not None:
            return kept["answer"]
        if key not in self._asked:
            task = asyncio.get_running_loop().create_task(self._ask(key, request, ask))
            self._asked[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(self._asked[key])  # one waiter that gives up must not take it from the others

    async def _ask(self, key: str, request: Any, ask: Callable[[], Awaitable[Any]]) -> Any:
        answer = await ask()
        if self._directory is not None:
            try:
                self._write(self._path(key), {"request": request, "answer": answer})
            except OSError as error:  # a full disk: the answer is there, and it was paid for
                logger.warning("an answer could not be kept, and will be asked for again: %s", error)
        return answer

    def _forget(self, key: str, task: asyncio.Task[Any]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # heard, also where nobody waits any more

    def _read(self, key: str, request: Any) -> dict[str, Any] | None:
        """None where there is nothing, or a file that was damaged; it is then written anew."""
        if self._directory is None:
            return None
        try:
            kept = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        fits = isinstance(kept, dict) and "answer" in kept and _canonical(kept.get("request")) == _canonical(request)
        return kept if fits else None

    def _write(self, path: Path, kept: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            temporary.write_text(json.dumps(kept), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / f"{key}.json"


def _canonical(request: Any) -> bytes:
    return json.dumps(request, sort_keys=True, separators=(",", ":")).encode()
