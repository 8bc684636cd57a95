"""How many calls of a tool run at the same time, and for how long each may."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from nemo_axpo.config.schema import ToolsConfig


@dataclass(frozen=True)
class CallLimit:
    """Of one tool."""

    timeout_s: float
    max_concurrent: int | None = None
    """Further calls wait; None: no limit."""


def call_limit(config: ToolsConfig, entry: str) -> CallLimit:
    """Of an entry of ``tools.names``: what ``tools.limits`` says of it, else ``tools.timeout_s`` and no limit."""
    own = config.limits.get(entry)
    if own is None:
        return CallLimit(config.timeout_s)
    return CallLimit(own.timeout_s or config.timeout_s, own.max_concurrent)


def call_limits(config: ToolsConfig, names: Sequence[str]) -> dict[str, CallLimit]:
    """By tool name. ``names``: those of the tools that ``config.names`` became, in its order."""
    return {name: call_limit(config, entry) for entry, name in zip(config.names, names, strict=True)}


class CallSlots:
    """Lets so many calls of each tool run as its limit says; waiting takes nothing from a call's own time."""

    def __init__(self, limits: Mapping[str, CallLimit]) -> None:
        self._limits = dict(limits)
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[None]:
        """Held during a call; tools without a limit never wait."""
        limit = self._limits.get(name)
        if limit is None or limit.max_concurrent is None:
            yield
            return
        async with self._of_loop(name, limit.max_concurrent):
            yield

    def _of_loop(self, name: str, count: int) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # another step of a run: what waited in the last one is over
            self._slots, self._loop = {}, loop
        return self._slots.setdefault(name, asyncio.Semaphore(count))
