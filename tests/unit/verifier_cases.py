"""Questions for verifiers, and functions that misbehave in a worker."""

from __future__ import annotations

import os
import signal
import time

from nemo_axpo.types import Message, Question, TextPart


def make_question(answer: str, *, other: tuple[str, ...] = (), asked: str = "?", source: str = "s") -> Question:
    return Question("q1", (Message("user", (TextPart(asked),)),), answer, source, other)


def act(what: str) -> object:
    """Called in a worker process."""
    if what == "pid":
        return os.getpid()
    if what == "environment":
        return sorted(os.environ)
    if what == "spin":
        while True:
            pass
    if what == "one C call":
        return len(str(7 ** (10**9)))
    if what == "sleep":
        time.sleep(1000)
    if what == "memory":
        return len(bytearray(1 << 40))
    if what == "exit":
        os._exit(3)
    if what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "abort":
        os.abort()
    if what == "raise":
        raise ValueError("a bug")
    if what == "print":
        print("not a reply")
        os.write(1, b"nor this\n")
    return what
