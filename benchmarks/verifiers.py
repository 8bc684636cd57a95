r"""The math verifier on ordinary and pathological answers, against math-verify called directly in a process of its own.

    python benchmarks/verifiers.py --output benchmarks/results/verifiers.json

``direct`` is ``verify(parse(reference), parse(answer))`` with math-verify's own limits (5 s for each of the three calls, by an
alarm). It runs in one child process, which this script kills when an answer takes longer than ``--patience`` seconds: that
is a wedge, and in a trainer nobody would kill it. sympy uses gmpy2 where it is installed; run once without and once with it
(``pip install --target DIR gmpy2``, then ``PYTHONPATH=DIR``). The child may have 4 GiB of memory. ``workers`` is ``MathEquality`` as a run
uses it, also asked one answer at a time for the seconds of each. All run one after the other on the same corpus. ``soak`` is one
long life of two workers, and what is held before and after it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from environment import argument_parser, write_result

from nemo_axpo.rewards.math_equality import MathEquality
from nemo_axpo.types import Message, Question, TextPart

PATHOLOGICAL = (
    "9**9**9**9", "9^{9^{9^{9}}}", "10^{10^{10^{10}}}", "2^{10000000000}", "1000000!!!", "(10^{8})!", "\\binom{10^9}{5\\cdot10^8}",
    "3^{300000000}", "\\log(7^{100000000})", "\\frac{100000000!}{99999999!}", "10000000!",
    "\\sum_{n=1}^{10^9} \\frac{1}{n}", "\\prod_{n=1}^{10^8} (1+\\frac{1}{n^2})", "\\int_0^1 x^{x^{x}} dx",
    "\\int_0^{\\infty} \\frac{\\sin(x^3+x)}{x^5+\\cos(x)} dx", "\\lim_{x\\to0} \\frac{\\sin(\\tan x)-\\tan(\\sin x)}{x^7}",
    "\\frac{" * 100 + "1" + "}{2}" * 100, "\\frac{1}{1+" * 60 + "x" + "}" * 60, "(" * 900 + "1" + ")" * 900,
    "\\sqrt{" * 120 + "2" + "}" * 120, "\\sqrt[" * 50 + "2" + "]{2}" * 50, "(x+y+z+w)^{200}-(x+y+z+w)^{199}",
    "\\{" + ",".join(f"\\frac{{{n}}}{{{n + 1}}}" for n in range(90)) + "\\}", "$" * 1900, "\\boxed{" * 250, "1," * 900,
    "1+" * 900 + "1", "|" * 600 + "x" + "|" * 600,
)  # fmt: skip
"""Answers on which a verifier may compute for ever; none is 12."""


@dataclass(frozen=True)
class Case:
    """One answer and whether it is right."""

    reference: str
    answer: str
    is_right: bool


def ordinary(num_cases: int, *, seed: int) -> list[Case]:
    """Answers as a policy gives them: fractions, roots, sets, polynomials, intervals, equations; half of them right."""
    rng, cases = random.Random(seed), []
    for _ in range(num_cases):
        a, b, c = rng.randrange(2, 60), rng.randrange(2, 30), rng.randrange(1, 9)
        off = 0 if rng.random() < 0.5 else rng.randrange(1, 5)
        reference, answer = rng.choice(
            [
                (f"\\frac{{{a}}}{{8}}", str((a + off) / 8)),
                (f"\\frac{{{a * b}}}{{{b}}}", str(a + off)),
                (f"{c * 1000 + a}", f"{c},{a + off:03d}"),
                (f"\\sqrt{{{a * a * b}}}", f"{a + off}\\sqrt{{{b}}}"),
                (f"\\{{{a}, {a + b}\\}}", f"\\{{{a + b + off}, {a}\\}}"),
                (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b + off})"),
                (f"[{-a}, {b})", f"[{-a}, {b + off})"),
                (f"x={a}", f"{a + off}"),
                (f"{a}\\pi", f"\\pi \\cdot {a + off}"),
                (f"2^{{{c}}}", str(2**c + off)),
                (f"({a}, {b}, {c})", f"({a}, {b + off}, {c})"),
            ]
        )
        cases.append(Case(reference, answer, not off))
    return cases


def direct_equal(case: Case) -> bool:
    """What a script that follows math-verify's page does."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${case.reference}$"), parse(f"${case.answer}$")))


def serve_direct(channel) -> None:
    """Life of the child that calls math-verify directly."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    direct_equal(Case("\\frac{1}{2}", "0.5", True))
    channel.send("ready")
    while True:
        channel.send(direct_equal(channel.recv()))


def in_a_thread() -> str:
    """What a direct call answers in any thread but the main one."""
    with ThreadPoolExecutor(1) as threads:
        try:
            return str(threads.submit(direct_equal, Case("\\frac{1}{2}", "0.5", True)).result())
        except ValueError as error:
            return f"ValueError: {error}"[:120]


def run_direct(cases: Sequence[Case], *, patience_s: float) -> dict[str, object]:
    """One answer after the other; a child that wedges or dies is killed and replaced, which is not timed."""
    context = multiprocessing.get_context("spawn")
    seconds, verdicts, num_wedged, num_died = [], [], 0, 0
    child = channel = None
    for case in cases:
        if child is None:
            channel, theirs = context.Pipe()
            child = context.Process(target=serve_direct, args=(theirs,), daemon=True)
            child.start()
            theirs.close()
            channel.recv()
        started, verdict = time.perf_counter(), None
        channel.send(case)
        try:
            if channel.poll(patience_s):
                verdict = channel.recv()
            else:
                num_wedged += 1
        except EOFError:
            num_died += 1
        seconds.append(time.perf_counter() - started)
        verdicts.append(verdict)
        if verdict is None:
            child.kill()
            child.join()
            child = None
    if child:
        child.kill()
        child.join()
    return summary(cases, verdicts, seconds) | {"wedged": num_wedged, "died": num_died}


def run_workers(cases: Sequence[Case], *, num_workers: int, at_once: bool) -> dict[str, object]:
    """All answers at once, as a step does, or one after the other."""
    verifier = MathEquality(num_workers=num_workers)
    return asyncio.run(_run_workers(verifier, cases, at_once=at_once))


async def _run_workers(verifier: MathEquality, cases: Sequence[Case], *, at_once: bool) -> dict[str, object]:
    async def judge(case: Case) -> tuple[bool, float]:
        started = time.perf_counter()
        question = Question("q", (Message("user", (TextPart("?"),)),), case.reference, "math")
        return bool(await verifier.judge(question, case.answer)), time.perf_counter() - started

    warm = [Case("1", str(n), n == 1) for n in range(8)]
    await asyncio.gather(*[judge(case) for case in warm])
    verifier.pool.outcomes.clear()
    started = time.perf_counter()
    if at_once:
        judged = await asyncio.gather(*[judge(case) for case in cases])
    else:
        judged = [await judge(case) for case in cases]
    wall_s = time.perf_counter() - started
    outcomes = dict(verifier.pool.outcomes)
    await verifier.close()
    verdicts, seconds = [right for right, _ in judged], [s for _, s in judged]
    result = {"wall_s": round(wall_s, 2), "answers_per_s": round(len(cases) / wall_s, 1), "outcomes": outcomes}
    return (result if at_once else summary(cases, verdicts, seconds) | result) | {
        "wrong_verdicts": wrong_verdicts(cases, verdicts)
    }


def soak(num_cases: int) -> dict[str, object]:
    """Thousands of answers, every 500th pathological: what this process and its keepers hold before and after."""
    cases = ordinary(num_cases, seed=2)
    for place in range(250, num_cases, 500):
        cases[place] = Case("12", PATHOLOGICAL[place // 500 % len(PATHOLOGICAL)], False)
    verifier = MathEquality(num_workers=2)
    return asyncio.run(_soak(verifier, cases))


async def _soak(verifier: MathEquality, cases: Sequence[Case]) -> dict[str, object]:
    async def judge(case: Case) -> bool:
        question = Question("q", (Message("user", (TextPart("?"),)),), case.reference, "math")
        return bool(await verifier.judge(question, case.answer))

    both_warm = [Case("1", str(n), n == 1) for n in range(8)]  # a killed process is replaced at the next answer
    verdicts = await asyncio.gather(*[judge(case) for case in cases[:1000]])
    await asyncio.gather(*[judge(case) for case in both_warm])
    before, started = held(), time.perf_counter()
    for place in range(1000, len(cases), 1000):
        verdicts += await asyncio.gather(*[judge(case) for case in cases[place : place + 1000]])
    wall_s = time.perf_counter() - started
    await asyncio.gather(*[judge(case) for case in both_warm])
    after = held()
    outcomes = dict(verifier.pool.outcomes)
    await verifier.close()
    return {
        "answers": len(cases),
        "wall_s": round(wall_s, 1),
        "outcomes": outcomes,
        "wrong_verdicts": wrong_verdicts(cases, verdicts),
        "after 1000 answers": before,
        "after all answers": after,
        "after closing": held(),
    }


def held() -> dict[str, int]:
    """Descriptors and MiB of this process, and its descendants' number and MiB."""
    descendants = list(descendants_of(os.getpid()))
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mib": resident_mib(os.getpid()),
        "processes": len(descendants),
        "processes_mib": sum(map(resident_mib, descendants)),
    }


def descendants_of(pid: int) -> Iterator[int]:
    """Every process below one, zombies included."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            yield child
            yield from descendants_of(child)


def resident_mib(pid: int) -> int:
    """Memory of one process, pages that forks share counted in each."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def summary(cases: Sequence[Case], verdicts: Sequence[bool | None], seconds: Sequence[float]) -> dict[str, object]:
    """Rates and percentiles of answers that were given one after the other."""
    ordered = sorted(seconds)
    return {
        "wall_s": round(sum(seconds), 2),
        "answers_per_s": round(len(cases) / sum(seconds), 1),
        "p50_ms": round(statistics.median(ordered) * 1e3, 1),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))] * 1e3, 1),
        "max_s": round(ordered[-1], 2),
        "wrong_verdicts": wrong_verdicts(cases, verdicts),
    }


def wrong_verdicts(cases: Sequence[Case], verdicts: Sequence[bool | None]) -> int:
    """Answers that got another verdict than they must; none at all is counted elsewhere."""
    return sum(v is not None and v != case.is_right for case, v in zip(cases, verdicts, strict=True))


def measure(num_ordinary: int, *, num_soak: int, patience_s: float) -> Iterator[tuple[str, object]]:
    """Every part of the result as it is finished."""
    plain, hard = ordinary(num_ordinary, seed=0), [Case("12", answer, False) for answer in PATHOLOGICAL]
    yield "corpus", {"ordinary": len(plain), "right": sum(case.is_right for case in plain), "pathological": len(hard)}
    yield "soak, workers=2", soak(num_soak)
    yield "direct in a thread", in_a_thread()
    yield "ordinary, direct", run_direct(plain, patience_s=patience_s)
    yield "ordinary, workers=1 one by one", run_workers(plain, num_workers=1, at_once=False)
    yield "ordinary, workers=2 at once", run_workers(plain, num_workers=2, at_once=True)
    yield "pathological, direct", run_direct(hard, patience_s=patience_s)
    yield "pathological, workers=1 one by one", run_workers(hard, num_workers=1, at_once=False)
    mixed = plain + hard
    random.Random(1).shuffle(mixed)
    yield "mixed, workers=2 at once", run_workers(mixed, num_workers=2, at_once=True)


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--ordinary", type=int, default=1000, help="ordinary answers")
    parser.add_argument("--soak", type=int, default=10_000, help="answers of the soak; at least 1000")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds after which a direct call is a wedge")
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    for name, result in measure(arguments.ordinary, num_soak=arguments.soak, patience_s=arguments.patience):
        results[name] = result
        print(json.dumps({name: result}), flush=True)
    write_result(arguments.output, results, packages=("math-verify", "latex2sympy2_extended", "sympy", "gmpy2"))


if __name__ == "__main__":
    main()
