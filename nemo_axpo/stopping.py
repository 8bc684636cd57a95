"""A run that must end early: SIGUSR1 (what a queue sends before its time limit) or ``job.max_time``.

The step under way is finished and saved, and ``stopped.json`` says that the run is to be resumed. SIGTERM keeps its meaning:
it ends the process at once.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.run_directory import RunDirectory

SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class StopVote:
    """What one rank has to say about going on."""

    reason: str | None


@dataclass
class StopRequest:
    """Asked between steps whether to take another one."""

    max_time_s: float | None = None
    """Wall seconds since the start; the run stops where a step as long as the longest so far would not fit any more."""
    clock: Callable[[], float] = time.monotonic
    is_signalled: bool = False
    _start: float = field(init=False)
    _last: float = field(init=False)
    _longest_step_s: float = 0.0

    def __post_init__(self) -> None:
        self._start = self._last = self.clock()

    def begin_steps(self) -> None:
        """What came before was no step."""
        self._last = self.clock()

    def after_step(self, replicas: Replicas) -> str | None:
        """Why to stop, the same on every rank; None: go on. Every rank calls it after every step."""
        now = self.clock()
        self._longest_step_s, self._last = max(self._longest_step_s, now - self._last), now
        votes = replicas.gather([StopVote(self._own_reason(now))], kind=StopVote)
        return next((vote.reason for vote in votes if vote.reason is not None), None)

    def _own_reason(self, now: float) -> str | None:
        if self.is_signalled:
            return f"signal {SIGNAL.name}"
        if self.max_time_s is not None and now - self._start + self._longest_step_s > self.max_time_s:
            return "job.max_time"
        return None


def seconds_of(max_time: str | None) -> float | None:
    """Seconds of ``days:hours:minutes:seconds``."""
    if max_time is None:
        return None
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)


@contextlib.contextmanager
def listening(request: StopRequest) -> Iterator[StopRequest]:
    """SIGUSR1 sets ``request`` for as long as the block lasts; outside the main thread no signal can be listened to."""
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: object) -> None:
        request.is_signalled = True

    before = signal.signal(SIGNAL, note)
    try:
        yield request
    finally:
        signal.signal(SIGNAL, before)


def mark_stopped(run: RunDirectory, *, step: int, reason: str) -> None:
    """Leaves word that the run ended early and is to be resumed."""
    run.stopped_path.write_text(json.dumps({"step": step, "reason": reason}) + "\n", encoding="utf-8")


def clear_mark(run: RunDirectory) -> None:
    """A run that goes on is not stopped."""
    run.stopped_path.unlink(missing_ok=True)
