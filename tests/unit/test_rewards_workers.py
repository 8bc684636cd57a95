"""Worker processes: whatever a call does, it is answered, and the next one too."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_axpo.rewards.base import VerifierUnavailableError
from nemo_axpo.rewards.workers.pool import CallLimits, CallTooHardError, WorkerPool

HERE = str(Path(__file__).parent)


@pytest.fixture(name="pool")
def pool_fixture(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SECRET_API_KEY", "sk-1")
    pool = WorkerPool("verifier_cases:act", num_workers=1, limits=CallLimits(cpu_s=0.3, calls_per_process=50))
    yield pool
    pool.close()


def is_running(pid) -> bool:
    """Whether the process can still do anything; a zombie waits for a parent that need not come."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def call(pool, what):
    return asyncio.run(pool.call(what))


def test_a_worker_is_kept_and_sees_no_secret(pool):
    assert call(pool, "pid") == call(pool, "pid") != os.getpid()
    assert call(pool, "print") == "print"
    assert not {"SECRET_API_KEY"} & set(call(pool, "environment"))


@pytest.mark.parametrize("what", ["spin", "one C call", "memory", "abort"])
def test_arguments_that_are_too_hard(pool, what):
    with pytest.raises(CallTooHardError, match="used up|want of memory"):
        call(pool, what)
    assert call(pool, "next") == "next"


@pytest.mark.parametrize(
    ("what", "message"),
    [("exit", "status 3"), ("segfault", "signal SIGSEGV"), ("raise", "a bug")],
)
def test_failures_that_say_nothing_of_the_arguments(pool, what, message):
    with pytest.raises(VerifierUnavailableError, match=message):
        call(pool, what)
    assert call(pool, "next") == "next"


def test_a_call_that_gets_no_cpu_time_is_not_too_hard(pool):
    pool._limits = CallLimits(cpu_s=0.3, stall_s=1.0)
    with pytest.raises(VerifierUnavailableError, match="no answer and no end of its CPU time within 1 s"):
        call(pool, "sleep")
    assert call(pool, "next") == "next"


def test_a_replaced_process_has_another_id_and_the_old_one_is_gone(pool):
    before = call(pool, "pid")
    with pytest.raises(CallTooHardError):
        call(pool, "spin")
    assert call(pool, "pid") != before
    assert not is_running(before)


def test_a_process_is_replaced_after_its_calls(pool):
    assert len({call(pool, "pid") for _ in range(101)}) == 3  # 50 + 50 + 1


def test_a_killed_keeper_is_started_again(pool):
    call(pool, "first")
    (worker,) = pool._workers
    os.killpg(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert call(pool, "second") == "second"


def test_closing_ends_every_process_even_one_that_computes(pool):
    async def close_meanwhile():
        pid = await pool.call("pid")
        running = asyncio.ensure_future(pool.call("sleep"))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(pool.close)
        with pytest.raises(VerifierUnavailableError):
            await running
        return pid

    pid = asyncio.run(close_meanwhile())
    assert not is_running(pid)
    assert call(pool, "again") == "again"


def test_a_function_that_does_not_exist():
    pool = WorkerPool("nemo_axpo.rewards.math_worker:nothing", num_workers=1)
    with pytest.raises(VerifierUnavailableError, match="has no attribute 'nothing'"):
        call(pool, "x")
    pool.close()


def test_workers_end_with_a_trainer_that_is_killed():
    program = (
        "import asyncio, os, signal\n"
        "from nemo_axpo.rewards.workers.pool import WorkerPool\n"
        "pool = WorkerPool('verifier_cases:act', num_workers=1)\n"
        "print(asyncio.run(pool.call('pid')), pool._workers[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=100
    )
    pids = done.stdout.split()
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_trainer_with_more_descriptors_than_select_takes(pool):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert call(pool, "first") == "first"
        assert pool._workers[0]._process.stdout.fileno() > 1023
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nothing_is_left_over_after_many_calls(pool):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    call(pool, "first")
    before = descriptors()
    for number in range(40):
        with pytest.raises((CallTooHardError, VerifierUnavailableError)):
            call(pool, ("abort", "exit", "segfault", "raise")[number % 4])
        assert call(pool, "next") == "next"
    (worker,) = pool._workers
    keeper = f"/proc/{worker._process.pid}"
    children = Path(f"{keeper}/task/{worker._process.pid}/children").read_text().split()
    assert descriptors() == before and len(children) == 1
    assert len(os.listdir(f"{keeper}/fd")) < 12
    assert os.fstat(worker._log.fileno()).st_size == 0


def test_limits_that_make_no_sense():
    with pytest.raises(ValueError, match="stall_s above cpu_s"):
        CallLimits(cpu_s=5, stall_s=5)
    with pytest.raises(ValueError, match="use at least 1"):
        WorkerPool("a:b", num_workers=0)
