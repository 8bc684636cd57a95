"""Seconds of a call, once and repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """One call."""

    wall_s: float
    cpu_s: float
    """Of this process, all threads: on a shared machine it leaves out what the neighbours took."""
    result: Result


def timed(function: Callable[[], Result]) -> Timed[Result]:
    """Calls it once."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return Timed(wall_s, cpu_s, result)


def repeated(
    function: Callable[[], Result], *, repeats: int, after: Callable[[], object] | None = None
) -> list[Timed[Result]]:
    """``repeats`` calls; ``after`` runs after each, untimed."""
    calls = []
    for _ in range(repeats):
        calls.append(timed(function))
        if after is not None:
            after()
    return calls
