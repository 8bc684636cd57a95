"""The generation servers of one node, as a job script starts them:

    python -m nemo_axpo.launcher.serve_node --servers 4 --gpus-each 2 --first-port 8000 --checkpoint DIR

Server i sees its own GPUs and listens on the i-th port. One that ends is started again, a few times: it gets weights with the
next push. All end with this process.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Supervised:
    """A process that is started again when it ends."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    num_starts: int = 0

    def start(self) -> None:
        """Starts it; what it prints goes where this process prints."""
        self.process = subprocess.Popen(self.command, env={**os.environ, **self.environment})
        self.num_starts += 1


def supervise(jobs: Sequence[Supervised], *, max_restarts: int) -> int:
    """Runs ``jobs`` until one has failed more often than that, or SIGTERM; returns that one's status, 0 on SIGTERM.

    The others are then ended, and waited for.
    """
    is_ending = False

    def end(number: int, frame: object) -> None:
        nonlocal is_ending
        is_ending = True
        _terminate(jobs)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for job in jobs:
            job.start()
        while not is_ending:
            ended = _wait_for_the_next_to_end(jobs)
            if ended is None or is_ending:
                continue
            status = ended.process.returncode if ended.process else 0
            print(f"serve_node: {ended.name} ended with status {status}", file=sys.stderr, flush=True)
            if ended.num_starts > max_restarts:
                return status or 1
            ended.start()
        return 0
    finally:
        _terminate(jobs)
        for job in jobs:
            if job.process is not None:
                job.process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_the_next_to_end(jobs: Sequence[Supervised]) -> Supervised | None:
    """The one of ``jobs`` that ended; None for another child of this process, and after a signal."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    if ended is None:
        return None
    for job in jobs:
        if job.process is not None and job.process.pid == ended.si_pid:
            job.process.wait()
            return job
    os.waitpid(ended.si_pid, 0)
    return None


def _terminate(jobs: Sequence[Supervised]) -> None:
    for job in jobs:
        if job.process is not None and job.process.poll() is None:
            job.process.terminate()


def server_jobs(options: argparse.Namespace, extra: Sequence[str]) -> list[Supervised]:
    """The servers of this node."""
    jobs = []
    for number in range(options.servers):
        first = options.first_gpu + number * options.gpus_each
        gpus = ",".join(str(gpu) for gpu in range(first, first + options.gpus_each))
        command = [
            sys.executable, "-m", "nemo_axpo.engines.vllm_server.launch", "--host", "0.0.0.0",
            "--port", str(options.first_port + number), "--checkpoint", options.checkpoint,
            "--dtype", options.dtype, "--max-model-len", str(options.max_model_len),
            "--max-num-seqs", str(options.max_num_seqs),
            "--gpu-memory-utilization", str(options.gpu_memory_utilization),
            "--tensor-parallel-size", str(options.gpus_each), *extra,
        ]  # fmt: skip
        jobs.append(Supervised(f"server {number} (GPUs {gpus})", command, {"CUDA_VISIBLE_DEVICES": gpus}))
    return jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Until SIGTERM, or until a server keeps failing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--servers", type=int, required=True)
    parser.add_argument("--gpus-each", type=int, default=1)
    parser.add_argument("--first-gpu", type=int, default=0)
    parser.add_argument("--first-port", type=int, default=8000)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-model-len", type=int, default=20_480)
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--max-restarts", type=int, default=3)
    options, extra = parser.parse_known_args(arguments)
    return supervise(server_jobs(options, extra), max_restarts=options.max_restarts)


if __name__ == "__main__":
    sys.exit(main())
