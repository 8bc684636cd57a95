"""Calls of the python tool: milliseconds and calls a second, against ``python -c`` for each call and peers' executors.

    python benchmarks/tool_calls.py --output benchmarks/results/tool_calls.json --peer-path DIRECTORY ...

    live      a call in an interpreter that is already there
    fresh     a new interpreter with every layer of the sandbox, one call, its end
    python -c a new process for each call, with the imports the snippet needs and no sandbox
    peers     see tool_call_peers.py; ``--peer-path`` is where they are installed or checked out

``--soak N`` makes N mixed calls (right ones, errors, deadlines, deaths, figures) over many rollouts and counts what is left behind.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import random
import sys
import time
from collections.abc import Awaitable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from environment import argument_parser, write_result
from tool_call_peers import CONCURRENCY as PEER_CONCURRENCY
from tool_call_peers import PROGRAMS, peer_calls

from nemo_axpo.data.images import ImageStore
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.rollouts.tool_metrics import percentile
from nemo_axpo.tools.python.tool import PythonSettings, PythonTool

SNIPPETS = {
    "trivial": "6 * 7",
    "numpy": "import numpy as np\nfloat(np.linalg.inv(np.eye(50) * 2).sum())",
    "matplotlib": "import matplotlib.pyplot as plt\nplt.figure(figsize=(3, 2))\nplt.plot([1, 2, 3])\nplt.show()",
}
_SAVED = SNIPPETS["matplotlib"].replace("plt.show()", "import io; plt.savefig(io.BytesIO(), format='png')")
OUTSIDE = SNIPPETS | {"matplotlib": "import matplotlib\nmatplotlib.use('Agg')\n" + _SAVED}
CONCURRENCY = (1, 4, 16, 32)


async def live_calls(tool: PythonTool, code: str, *, count: int, concurrency: int) -> list[float]:
    """Seconds of each call; one interpreter for each of ``concurrency`` rollouts."""
    sessions = [tool.open([]) for _ in range(concurrency)]
    for session in sessions:
        await session.call({"code": code})
    times: list[float] = []

    async def work(session: Any) -> None:
        for _ in range(count // concurrency):
            times.append(await _timed(session.call({"code": code})))

    await asyncio.gather(*map(work, sessions))
    for session in sessions:
        await session.close()
    return times


async def fresh_calls(tool: PythonTool, code: str, *, count: int, concurrency: int) -> list[float]:
    """Seconds from opening an interpreter to its end."""
    times: list[float] = []

    async def once() -> None:
        session = tool.open([])
        result = await session.call({"code": code})
        assert not result.error, result
        await session.close()

    async def work() -> None:
        for _ in range(count // concurrency):
            times.append(await _timed(once()))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return times


async def process_calls(code: str, *, count: int, concurrency: int) -> list[float]:
    """``python -c`` for each call."""
    times: list[float] = []

    async def once() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0

    async def work() -> None:
        for _ in range(count // concurrency):
            times.append(await _timed(once()))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return times


async def _timed(work: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def summary(times: Sequence[float], *, wall_s: float) -> dict[str, float]:
    """Milliseconds and calls a second."""
    return {
        "calls": len(times),
        "best_ms": round(1000 * min(times), 3),
        "p50_ms": round(1000 * percentile(times, 50), 3),
        "p99_ms": round(1000 * percentile(times, 99), 3),
        "calls_per_s": round(len(times) / wall_s, 1),
    }


def measured(calls: Coroutine[Any, Any, list[float]], *, tool: PythonTool | None = None) -> dict[str, float]:
    """A summary of the seconds that ``calls`` returns, and CPU milliseconds of a call, which a busy machine changes less."""
    started, cpu_started = time.perf_counter(), _cpu_s(tool)
    times = asyncio.run(calls)
    wall_s = time.perf_counter() - started
    time.sleep(0.2)  # until the last interpreters have ended
    return summary(times, wall_s=wall_s) | {"cpu_ms": round(1000 * (_cpu_s(tool) - cpu_started) / len(times), 3)}


def _cpu_s(tool: PythonTool | None) -> float:
    """Of this process, the fork server, and their children that have ended."""
    spent = os.times()
    seconds = spent.user + spent.system + spent.children_user + spent.children_system
    if tool is None:
        return seconds
    fields = Path(f"/proc/{tool._server._process.pid}/stat").read_text().rpartition(")")[2].split()
    return seconds + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(tool: PythonTool, name: str, *, peer_paths: Sequence[Path]) -> dict[str, Any]:
    """Every way and concurrency of one snippet."""
    code, outside, slow = SNIPPETS[name], OUTSIDE[name], name == "matplotlib"
    live, fresh, processes = (128, 64, 8) if slow else (1024, 256, 16)
    results: dict[str, Any] = {
        "live": {n: measured(live_calls(tool, code, count=live, concurrency=n), tool=tool) for n in CONCURRENCY},
        "fresh": {n: measured(fresh_calls(tool, code, count=fresh, concurrency=n), tool=tool) for n in CONCURRENCY},
        "python -c": {n: measured(process_calls(outside, count=processes, concurrency=n)) for n in (1, 4)},
    }
    for peer in PROGRAMS if peer_paths else ():
        results[peer] = {}
        for n in PEER_CONCURRENCY.get(peer, (1, 4)):
            times, wall_s = peer_calls(peer, outside, concurrency=n, paths=peer_paths)
            results[peer][n] = summary(times, wall_s=wall_s)
    results["load_average"] = os.getloadavg()[0]
    print(name, json.dumps(results), flush=True)
    return results


# ---------------------------------------------------------------------------------------------------------------- soak
_MIXTURE = (
    ("x = 1\nx", 60),
    (SNIPPETS["numpy"], 15),
    ("1 / 0", 10),
    ("open('f', 'w').write('x' * 100_000)", 5),
    ("print('x' * 100_000)", 4),
    ("b = bytearray(3 << 30)", 2),
    ("import os; os._exit(1)", 1),
    (SNIPPETS["matplotlib"], 1),
    ("import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()", 1),
    ("while True: pass", 0.2),
)


async def soak(tool: PythonTool, *, count: int, concurrency: int) -> dict[str, Any]:
    """Mixed calls in rollouts of up to 20; what is there before and after."""
    rng = random.Random(0)
    left, before = count, _held(tool)
    errors: dict[str, int] = {}
    started = time.perf_counter()

    async def rollouts() -> None:
        nonlocal left
        while left > 0:
            session = tool.open([])
            for _ in range(rng.randrange(1, 21)):
                left -= 1
                (code,) = rng.choices([c for c, _ in _MIXTURE], [w for _, w in _MIXTURE])
                result = await session.call({"code": code, "timeout": 1 if "while" in code else 20})
                errors[result.error] = errors.get(result.error, 0) + 1
            await session.close()

    await asyncio.gather(*(rollouts() for _ in range(concurrency)))
    wall_s = time.perf_counter() - started
    await asyncio.sleep(2)
    gc.collect()
    return {
        "calls": sum(errors.values()),
        "wall_s": round(wall_s, 1),
        "outcomes": {name or "fine": number for name, number in sorted(errors.items())},
        "before": before,
        "after": _held(tool),
    }


def _held(tool: PythonTool) -> dict[str, int]:
    server = tool._server
    status = Path(f"/proc/{server._process.pid}/status").read_text()
    return {
        "interpreters": server.num_forks(),
        "directories": sum(path.is_dir() for path in server.directory.iterdir()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "server_descriptors": len(os.listdir(f"/proc/{server._process.pid}/fd")),
        "server_kib": int(status.split("VmRSS:")[1].split()[0]),
    }


def main() -> None:
    """Measures, soaks where asked to, and writes the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--peer-path", type=Path, nargs="*", default=[], help="directories that peers are imported from")
    parser.add_argument("--snippets", nargs="*", default=list(SNIPPETS), choices=list(SNIPPETS))
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="mixed calls after the measurement")
    options = parser.parse_args()
    tool = PythonTool(ImageStore(tiny_image_processor()), settings=PythonSettings())
    tool._server.start()
    snippets = {name: measure(tool, name, peer_paths=options.peer_path) for name in options.snippets}
    results: dict[str, Any] = {"snippets": snippets}
    if options.soak:
        results["soak"] = asyncio.run(soak(tool, count=options.soak, concurrency=8))
        print(json.dumps(results["soak"], indent=1))
    tool.close()
    report = {"kernel": platform.release(), "layers": sorted(tool.layers), **results}
    write_result(options.output, report, packages=("smolagents", "ray"))


if __name__ == "__main__":
    main()
