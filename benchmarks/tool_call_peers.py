"""Other projects' executors as they ship, each in a process of its own that prints the seconds of its calls.

    smolagents               pip install smolagents: ``LocalPythonExecutor`` in this process, all imports allowed, a new one for each call
    verl-tool, python_code   github.com/TIGER-AI-Lab/verl-tool at 980962b: ``execute_python``, a process for each call (in firejail where
                             that is installed)
    verl-tool, ipython_code  the same commit, with Ray and IPython: an actor with a shell for each rollout; ``fresh`` is the first call of a
                             rollout, the actor's start included
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_TIMED = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
code, count, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def timed(call, *arguments):
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started
def report(call, inputs):
    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        times = list(pool.map(lambda one: timed(call, one), inputs))
    print("TIMES", json.dumps([times, time.perf_counter() - started]), flush=True)
"""
_SMOLAGENTS = """
from smolagents.local_python_executor import LocalPythonExecutor
def call(_):
    executor = LocalPythonExecutor(additional_authorized_imports=["*"])
    executor.send_tools({})
    executor(code)
report(call, range(count))
"""
_PROCESS = """
from verl_tool.servers.tools.python_code import execute_python
def call(_):
    output, error, failed = execute_python(code)
    assert not failed, error
report(call, range(count))
"""
_SHELL = """
import ray
ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
from verl_tool.servers.tools.utils.ipython_tool import call_python_script_with_ipython
def call(rollout):
    output, success = call_python_script_with_ipython(rollout, code)
    assert success, output
call("first")
"""
_LIVE = """
for number in range(concurrency):
    call(f"r{number}")
report(call, [f"r{number % concurrency}" for number in range(count)])
"""
_FRESH = """
report(call, [f"new{number}" for number in range(count)])
"""
PROGRAMS = {
    "smolagents": _TIMED + _SMOLAGENTS,
    "verl-tool, python_code": _TIMED + _PROCESS,
    "verl-tool, ipython_code, live": _TIMED + _SHELL + _LIVE,
    "verl-tool, ipython_code, fresh": _TIMED + _SHELL + _FRESH,
}
COUNTS = {"smolagents": 16, "verl-tool, python_code": 16, "verl-tool, ipython_code, live": 64, "verl-tool, ipython_code, fresh": 6}
CONCURRENCY = {"smolagents": (1,), "verl-tool, ipython_code, fresh": (1,)}
"""Of those that are not measured at 1 and 4: one shares its process with its caller, one takes seconds for a call."""


def peer_environment(paths: Sequence[Path]) -> dict[str, str]:
    """Of a peer's process: the checkouts and packages that this project does not have."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


def peer_calls(name: str, code: str, *, concurrency: int, paths: Sequence[Path]) -> tuple[list[float], float]:
    """Seconds of each call, and of all of them together."""
    command = [sys.executable, "-c", PROGRAMS[name], code, str(COUNTS[name]), str(concurrency)]
    environment = peer_environment(paths)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd="/tmp", timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TIMES ")]
    if not lines:
        raise RuntimeError(f"{name} did not measure: {done.stderr[-2000:]}")
    times, wall_s = json.loads(lines[0].removeprefix("TIMES "))
    return times, wall_s
