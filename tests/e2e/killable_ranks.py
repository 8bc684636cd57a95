"""Jobs of several ranks that can be killed, each rank a process of its own; torchrun's part is played here."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from forked import COMMAND, ForkedProcess, start_ranks

_GRACE_S = 3.0


def start(num_ranks: int, arguments: list[str], *, log: Path) -> list[ForkedProcess]:
    """Starts ``nemo-axpo ARGUMENTS`` in ``num_ranks`` ranks; what they print goes to ``log``, which grows."""
    return start_ranks(num_ranks, COMMAND, *arguments, log=log)


def kill(ranks: list[ForkedProcess], victim: int) -> bool:
    """SIGKILL to one rank, and the end of the others; False where the job was over before."""
    is_alive = ranks[victim].is_alive()
    if is_alive:
        ranks[victim].send_signal(signal.SIGKILL)
    for process in ranks:
        process.wait(_GRACE_S if is_alive else None)  # most fail by themselves, as they miss the dead one
        if process.is_alive():
            process.send_signal(signal.SIGTERM)
            process.wait(_GRACE_S)
            process.kill()
    return is_alive and ranks[victim].wait() == -signal.SIGKILL


def finish(ranks: list[ForkedProcess], *, timeout_s: float = 300.0) -> list[int | None]:
    """Exit statuses; what still runs after the timeout is killed."""
    end = time.monotonic() + timeout_s
    statuses = [process.wait(max(0.0, end - time.monotonic())) for process in ranks]
    for process in ranks:
        process.kill()
    return statuses
