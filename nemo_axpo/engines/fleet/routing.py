"""Which server a request goes to: the least loaded one, unless another already holds the beginning of its prompt.

All requests of a question share their prompt, and the K continuations of a prefix share much more, so a question has a
home: the server its first request went to, which holds the keys and values of the prompt. A home that is much busier than
the idlest server costs more in waiting than the prompt costs to compute, so the question then gets a second home.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

DEFAULT_SPILL_MARGIN = 8
"""Requests in flight that a home may have more than the idlest server; about one question's rollouts."""
_REQUEST_ID = re.compile(r"(?P<question>.+)/\d+(/k\d+)?/t\d+")
"""``<question>/<n>/t<turn>`` and ``<question>/<n>/k<k>/t<turn>``, as the rollouts name their requests."""


def prefix_key(request_id: str) -> str:
    """What the requests that share a prefix have in common: the question. Example: ``q7/3/k0/t1`` → ``q7``."""
    match = _REQUEST_ID.fullmatch(request_id)
    return match["question"] if match else request_id


class Router:
    """Chooses among the servers that are up; counts what is in flight on each."""

    def __init__(self, names: Sequence[str], *, spill_margin: int = DEFAULT_SPILL_MARGIN) -> None:
        self._in_flight = dict.fromkeys(names, 0)
        self._up = dict.fromkeys(names, False)
        self._homes: dict[str, list[str]] = {}
        self._spill_margin = spill_margin

    @property
    def in_flight(self) -> dict[str, int]:
        """Requests in flight by server."""
        return dict(self._in_flight)

    def set_up(self, name: str, is_up: bool) -> None:
        """Whether requests may go to ``name``; one that goes down is no question's home any more."""
        self._up[name] = is_up
        if not is_up:
            self._homes = {key: [home for home in homes if home != name] for key, homes in self._homes.items()}

    def forget_homes(self) -> None:
        """New weights: no server holds the beginning of any prompt."""
        self._homes.clear()

    def choose(self, key: str, *, avoid: Collection[str] = ()) -> str | None:
        """The server for a request of question ``key``; one of ``avoid`` only where no other is up; None without any."""
        up = [name for name, is_up in self._up.items() if is_up]
        usable = [name for name in up if name not in avoid] or up
        if not usable:
            return None
        idlest = min(usable, key=self._in_flight.__getitem__)
        homes = self._homes.setdefault(key, [])
        known = [name for name in homes if name in usable]
        if known:
            home = min(known, key=self._in_flight.__getitem__)
            if self._in_flight[home] - self._in_flight[idlest] <= self._spill_margin:
                return home
        if idlest not in homes:
            homes.append(idlest)
        return idlest

    def started(self, name: str) -> None:
        """A request goes to ``name``."""
        self._in_flight[name] += 1

    def ended(self, name: str) -> None:
        """A request of ``name`` is over, however."""
        self._in_flight[name] -= 1
