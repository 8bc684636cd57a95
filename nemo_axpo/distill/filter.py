"""``nemo-axpo filter``: the questions worth reinforcement learning.

    config.yaml   attempts.jsonl   kept.jsonl   report.json   report.md

A question that the policy solves in all of its K rollouts gives no advantage, and one that the teacher failed in all of its
own may have no answer; both are dropped, the rest goes into ``kept.jsonl`` for ``data.files[].keep``. As every finished
question is in ``attempts.jsonl`` at once, a killed command goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from nemo_axpo import assembly
from nemo_axpo.config.schema import Config
from nemo_axpo.distill.attempt_run import attempt_questions, lost_error, open_attempts, write_report
from nemo_axpo.distill.attempts import Attempt, require_attempts
from nemo_axpo.distill.report import AttemptSummary, histogram, percent, summarize_attempts
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint

KEPT_FILE, MARKDOWN_FILE = "kept.jsonl", "report.md"
KEPT, SOLVED, UNSOLVABLE = "kept", "solved by the policy", "failed by the teacher"
"""What becomes of a question."""


@dataclass(frozen=True)
class FilterReport:
    """What became of every question."""

    policy: AttemptSummary
    fates: dict[str, str]
    """KEPT, SOLVED or UNSOLVABLE by question id."""
    counts: dict[str, int]
    by_teacher: dict[str, dict[int, int]]
    """Questions by right rollouts of the teacher (``2``; ``unknown``), then of the policy."""
    sources: dict[str, dict[str, int]]
    """Counts of fates by data source."""

    @property
    def kept(self) -> list[str]:
        """Ids of the questions for reinforcement learning."""
        return [question_id for question_id, fate in self.fates.items() if fate == KEPT]


def run_filter(config: Config, *, resume: bool = False, console: Console | None = None) -> FilterReport:
    """Attempts the questions with the policy ``config.model.path``, writes what is kept and why.

    DataError where ``filter.teacher`` holds no attempts, before anything is sampled. RunFailedError where questions stayed
    lost; what was attempted is kept, and ``resume`` goes on with the rest.
    """
    console = console or Console()
    teacher = require_attempts(config.filter.teacher) if config.filter.teacher else ()
    with open_attempts(config, resume=resume) as (run, progress):
        bench = assembly.build_workbench(config, checkpoint=config.model.path)
        attempting = attempt_questions(
            config,
            name="filter",
            build_engine=partial(assembly.build_engine, config, bench=bench),
            weights=read_checkpoint(bench.checkpoint),
            bench=bench,
            run=run,
            progress=progress,
        )
        num_lost = asyncio.run(attempting)
        report = decide(require_attempts(run.path), teacher=teacher)
        _write(run.path, report)
    console.print(describe(report), markup=False, highlight=False)
    if num_lost:
        raise lost_error(num_lost)
    return report


def decide(attempts: Sequence[Attempt], *, teacher: Sequence[Attempt] = ()) -> FilterReport:
    """What becomes of every attempted question. ``teacher``: its attempts; questions it was not asked are no less good.

    A question that the policy always solves counts as solved, whatever the teacher did.
    """
    solved_by_teacher = {attempt.question_id: attempt.num_correct for attempt in teacher}
    fates = {attempt.question_id: _fate(attempt, solved_by_teacher) for attempt in attempts}
    by_teacher: dict[str, Counter[int]] = {}
    sources: dict[str, Counter[str]] = {}
    for attempt in attempts:
        known = solved_by_teacher.get(attempt.question_id)
        by_teacher.setdefault("unknown" if known is None else str(known), Counter())[attempt.num_correct] += 1
        sources.setdefault(attempt.source, Counter())[fates[attempt.question_id]] += 1
    counts = Counter(fates.values())
    return FilterReport(
        summarize_attempts(attempts),
        fates,
        {fate: counts.get(fate, 0) for fate in (KEPT, SOLVED, UNSOLVABLE)},
        {name: dict(sorted(by_teacher[name].items())) for name in sorted(by_teacher)},
        {name: dict(sources[name]) for name in sorted(sources)},
    )


def describe(report: FilterReport) -> str:
    """The report in some lines."""
    policy = report.policy
    counts = ", ".join(f"{count} {fate}" for fate, count in report.counts.items())
    rates = f"{percent(policy.accuracy)} right, {percent(policy.tool_use)} with a tool call"
    head = f"{policy.num_questions} questions: {counts}\nthe policy: {rates}; questions by right rollouts:"
    return "\n".join([head, *histogram(policy.solved)])


def markdown(report: FilterReport) -> str:
    """The report as a page: what became of the questions, by source, and both histograms."""
    policy = report.policy
    fates = (KEPT, SOLVED, UNSOLVABLE)
    lines = [
        "# Questions for reinforcement learning",
        "",
        _row("source", *fates),
        _row("---", *("---:" for _ in fates)),
    ]
    lines += [_row(name, *(counts.get(fate, 0) for fate in fates)) for name, counts in report.sources.items()]
    lines += [_row("all", *(report.counts[fate] for fate in fates)), ""]
    lines += [f"The policy: {percent(policy.accuracy)} right, {percent(policy.tool_use)} with a tool call.", ""]
    lines += ["Questions by right rollouts of the policy:", "", "```", *histogram(policy.solved), "```", ""]
    numbers = sorted(policy.solved)
    lines += ["By right rollouts of the teacher (rows) and of the policy (columns):", ""]
    lines += [_row("teacher", *numbers), _row("---", *("---:" for _ in numbers))]
    lines += [_row(name, *(row.get(number, 0) for number in numbers)) for name, row in report.by_teacher.items()]
    return "\n".join(lines) + "\n"


def _fate(attempt: Attempt, solved_by_teacher: Mapping[str, int]) -> str:
    if attempt.num_correct == len(attempt.rewards):
        return SOLVED
    return UNSOLVABLE if solved_by_teacher.get(attempt.question_id) == 0 else KEPT


def _write(directory: Path, report: FilterReport) -> None:
    """``kept.jsonl`` (whole or not at all), ``report.json`` and ``report.md``."""
    lines = [json.dumps({"id": question_id}, ensure_ascii=False) + "\n" for question_id in report.kept]
    temporary = directory / f".{KEPT_FILE}.{os.getpid()}"
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, directory / KEPT_FILE)
    by_teacher = {
        name: {str(number): count for number, count in row.items()} for name, row in report.by_teacher.items()
    }
    values = {"counts": report.counts, "sources": report.sources, "by_teacher": by_teacher}
    write_report(directory, values | {"policy": report.policy.as_dict()})
    (directory / MARKDOWN_FILE).write_text(markdown(report), encoding="utf-8")


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
