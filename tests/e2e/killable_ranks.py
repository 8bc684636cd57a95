"""Jobs of several ranks that can be killed, each rank a process of its own.

torchrun's part is played here: it gives ranks their number and ends the others when one is dead. A fork server that has
imported everything starts a job in a fraction of a second, so that many moments can be tried.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

_PRELOADED = ["nemo_axpo.train", "nemo_axpo.actors.actor", "nemo_axpo.engines.hf.engine", "killable_ranks"]
_GRACE_S = 3.0


def start(num_ranks: int, arguments: list[str], *, log: Path) -> list[BaseProcess]:
    """Starts ``nemo-axpo ARGUMENTS`` in ``num_ranks`` ranks; what they print goes to ``log``, which grows."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        context.Process(target=_run_rank, args=(rank, num_ranks, port, arguments, str(log)))
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    return ranks


def kill(ranks: list[BaseProcess], victim: int) -> bool:
    """SIGKILL to one rank, and the end of the others; False where the job was over before."""
    is_alive = ranks[victim].is_alive()
    if is_alive:
        os.kill(ranks[victim].pid, signal.SIGKILL)
    for process in ranks:
        process.join(_GRACE_S if is_alive else None)  # most fail by themselves, as they miss the dead one
        if process.is_alive():
            process.terminate()
            process.join(_GRACE_S)
            process.kill()
            process.join()
    return is_alive and ranks[victim].exitcode == -signal.SIGKILL


def finish(ranks: list[BaseProcess], *, timeout_s: float = 300.0) -> list[int | None]:
    """Exit statuses; what still runs after the timeout is killed."""
    end = time.monotonic() + timeout_s
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
    statuses = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return statuses


def _run_rank(rank: int, num_ranks: int, port: int, arguments: list[str], log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    import torch

    from nemo_axpo.cli import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))
