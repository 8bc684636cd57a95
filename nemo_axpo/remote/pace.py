"""A steady pace for requests to a service that allows so many a second."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Gives every request a time of its own. For one process, from whichever event loop."""

    def __init__(self, per_second: float | None) -> None:
        """``per_second``: requests; None: no limit."""
        self._interval_s = 1 / per_second if per_second else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when it is this request's turn."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._interval_s
        if turn > now:
            await asyncio.sleep(turn - now)

    def pause(self, seconds: float) -> None:
        """Nobody's turn comes for so long: the service asked for it."""
        self._next = max(self._next, time.monotonic() + seconds)
