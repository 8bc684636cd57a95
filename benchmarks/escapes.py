"""What contains the escape attempts: the layers of our sandbox, alone and together, and other frameworks' executors.

    python benchmarks/escapes.py --output benchmarks/results/escapes.json --table docs/escapes.md --peer-path DIRECTORY ...

The attempts (nemo_axpo/tools/python/escapes.py) are harmless where they succeed. They run as the user who starts this. A peer
runs every attempt in a process of its own that is killed after fifteen seconds, in the way its project ships: smolagents'
``LocalPythonExecutor`` with its default imports, and with all imports allowed; verl-tool's ``execute_python``, whose own limit is ten
seconds; ``exec`` in a child process with a deadline, as most reinforcement learning frameworks do it. ``--peer-path`` is where
smolagents is installed and verl-tool checked out (tool_call_peers.py names versions); without it, ``exec`` is the only peer.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from environment import argument_parser, write_result
from tool_call_peers import peer_environment

from nemo_axpo.sandbox import seccomp
from nemo_axpo.sandbox.policy import Layer, Limits, Policy
from nemo_axpo.tools.python.escape_stage import EscapeStage, attempt_all, open_stage
from nemo_axpo.tools.python.escapes import ATTEMPTS, PROOF, Attempt
from nemo_axpo.tools.python.fork_server import CHANNEL
from nemo_axpo.tools.python.server_process import readable_paths

SETS = {
    "all layers": frozenset(Layer),
    "without namespaces": frozenset(Layer) - {Layer.NAMESPACES},
    "namespaces, rlimits": frozenset({Layer.NAMESPACES, Layer.RLIMITS}),
    "rlimits": frozenset({Layer.RLIMITS}),
}
DEADLINE_S = 15.0
_EXEC = "import sys; exec(compile(sys.stdin.read(), '<cell>', 'exec'), {'__name__': '__main__'})"
_SMOLAGENTS = """
import sys
from smolagents.local_python_executor import LocalPythonExecutor
executor = LocalPythonExecutor(additional_authorized_imports=%s)
executor.send_tools({})
result = executor(sys.stdin.read())
print(result.logs, result.output)
"""
_VERL_TOOL = """
import sys
from verl_tool.servers.tools.python_code import execute_python
print(execute_python(sys.stdin.read()))
"""
PEERS = {
    "exec in a child process": _EXEC,
    "smolagents, default imports": _SMOLAGENTS % "[]",
    "smolagents, all imports": _SMOLAGENTS % "['*']",
    "verl-tool, python_code": _VERL_TOOL,
}


def ours(layers: frozenset[Layer]) -> dict[str, str]:
    """Breach by attempt, empty where contained."""
    program = seccomp.build_filter(allow_fork=False, channel=CHANNEL) if Layer.SECCOMP in layers else b""
    policy = Policy(layers, Limits(), readable_paths(), program)
    with open_stage() as (stage, server):
        results = asyncio.run(attempt_all(ATTEMPTS, policy=policy, stage=stage, server=server))
    return {result.name: result.breach for result in results}


def peer(program: str, *, paths: Sequence[Path]) -> dict[str, str]:
    """Breach by attempt; attempts on our own channel do not concern a peer."""
    stage = EscapeStage()
    try:
        return {one.name: _by_peer(one, program=program, stage=stage, paths=paths) for one in ATTEMPTS if one.kind != "channel"}
    finally:
        stage.close()


def _by_peer(attempt: Attempt, *, program: str, stage: EscapeStage, paths: Sequence[Path]) -> str:
    started = time.monotonic()
    directory = tempfile.mkdtemp()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=directory,
        env=peer_environment(paths),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(attempt.cell(stage.goals), timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        output = ""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(directory, ignore_errors=True)
    if "daemon" in attempt.name or "leave one" in attempt.name:
        time.sleep(1.8)
    never_ends = attempt.name.startswith("never end")
    seen = [
        "reached" if PROOF in (output or "") else "",
        stage.breach(),
        # Here the deadline is ours: whoever calls the peer in its own process waits for ever.
        "it never ended" if never_ends and time.monotonic() - started > DEADLINE_S - 1 else "",
    ]
    return ", ".join(filter(None, seen))


def table(columns: dict[str, dict[str, str]], *, command: str) -> str:
    """Markdown: a row for each attempt."""
    names = list(columns)
    counts = " | ".join(f"{sum(not b for b in column.values())} of {len(column)}" for column in columns.values())
    lines = [
        "# Escape attempts",
        "",
        f"Made by `{command}`. ✓: contained; otherwise what was reached.",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        f"| **contained** | {counts} |",
    ]
    for kind in dict.fromkeys(attempt.kind for attempt in ATTEMPTS):
        lines.append(f"| **{kind}** |{' |' * len(names)}")
        for attempt in (one for one in ATTEMPTS if one.kind == kind):
            cells = " | ".join(_cell(column, attempt.name) for column in columns.values())
            lines.append(f"| {attempt.name} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(column: dict[str, str], name: str) -> str:
    return (column[name] or "✓") if name in column else "–"


def measure(names: Sequence[str], *, paths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Every set of layers, then the peers asked for."""
    jobs: dict[str, Callable[[], dict[str, str]]] = {
        name: (lambda layers=layers: ours(layers)) for name, layers in SETS.items()
    }
    jobs |= {name: (lambda name=name: peer(PEERS[name], paths=paths)) for name in names}
    columns = {}
    for name, job in jobs.items():
        columns[name] = job()
        print(f"{name}: {sum(not breach for breach in columns[name].values())} of {len(columns[name])} contained", flush=True)
    return columns


def main() -> None:
    """Measures and writes both files where asked to."""
    parser = argument_parser(__doc__)
    parser.add_argument("--table", type=Path, help="write the Markdown table here")
    parser.add_argument("--peer-path", type=Path, nargs="*", default=[], help="directories that peers are imported from")
    options = parser.parse_args()
    columns = measure(list(PEERS) if options.peer_path else list(PEERS)[:1], paths=options.peer_path)
    if options.table:
        options.table.write_text(table(columns, command="python benchmarks/escapes.py"))
    write_result(options.output, {"kernel": platform.release(), "breaches": columns}, packages=())


if __name__ == "__main__":
    main()
