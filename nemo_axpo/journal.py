"""``journal.jsonl``: which questions a run has consumed, and where it was resumed; ``nemo-axpo journal`` verifies it.

    {"event": "resumed", "step": 4}                                                 steps after 4 are undone
    {"event": "trained", "step": 5, "first": 64, "count": 16, "questions": ["…", …]}

A line is synced to disk before a checkpoint that contains its step is begun, and none is ever removed: what a killed
process trained after its last checkpoint stays, marked as undone by the next ``resumed`` line.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from nemo_axpo.errors import RunDirectoryError, rule_message
from nemo_axpo.metrics_log import drop_half_line
from nemo_axpo.run_directory import RunDirectory, check_is_run

_MAX_SHOWN = 5


class Journal:
    """Appends to a run's journal; one rank of the job does."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        drop_half_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def resumed(self, step: int) -> None:
        """The run goes on after ``step`` steps: 0 at its start."""
        self._write({"event": "resumed", "step": step})

    def trained(self, step: int, *, first: int, count: int, rollouts: Iterable[tuple[str, str]]) -> None:
        """Step ``step`` asked questions ``first`` to ``first + count`` of the stream, and got these rollouts.

        ``rollouts``: question id and rollout id of each.
        """
        values = {"first": first, "count": count, "questions": answered_questions(rollouts)}
        self._write({"event": "trained", "step": step, **values})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, event: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def answered_questions(rollouts: Iterable[tuple[str, str]]) -> list[str]:
    """Ids of the questions that got rollouts, sorted, each as often as it was asked.

    ``rollouts``: question id and rollout id of each. Rollouts of one asking are numbered, so an id that stands at two positions
    of the stream has rollouts of the same number twice.
    """
    times: dict[str, int] = {}
    for (question_id, _), count in Counter(rollouts).items():
        times[question_id] = max(count, times.get(question_id, 0))
    return sorted(Counter(times).elements())


@dataclass
class JournalVerdict:
    """What a journal shows."""

    num_steps: int = 0
    """Steps that the policy of today has trained."""
    num_questions: int = 0
    """Positions of the question stream they consumed."""
    num_resumes: int = 0
    num_undone: int = 0
    """Steps that were lost with a killed process and trained again."""
    num_repeated: int = 0
    """Question ids at more than one position: further passes over the data, if the stream makes any."""
    problems: list[str] = field(default_factory=list)
    """What contradicts "no question lost, none trained twice"; empty where nothing does."""

    @property
    def is_good(self) -> bool:
        """Whether the journal shows that no question was lost and none was trained twice."""
        return not self.problems

    def __str__(self) -> str:
        """One line, and one for each of the first problems."""
        again = f"{self.num_repeated} ids at several positions" if self.num_repeated else "each id once"
        lines = [
            f"{'OK' if self.is_good else 'NOT OK'}: {self.num_steps} steps, {self.num_questions} questions, {again}; "
            f"resumed {self.num_resumes} times, {self.num_undone} steps undone and trained again; "
            + ("no question lost, none trained twice" if self.is_good else f"{len(self.problems)} problems")
        ]
        return "\n".join([*lines, *self.problems[:_MAX_SHOWN]])


def verify_journal(path: str | Path) -> JournalVerdict:
    """Replays a journal, from its first line to its last whole one.

    The steps that count must follow each other without a gap, and so must the positions of their questions; a step that
    was undone must have asked the same ones when it was trained again. ValueError for a line that is no event.
    """
    replay = _Replay()
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            replay.read(json.loads(line), where=f"line {number}")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            rule = f"every line of {path} must be an event of a journal"
            raise ValueError(rule_message(rule, got=f"line {number} ({error!r})", cure="restore the file")) from None
    return replay.verdict()


def print_verdict(run_dir: str | Path) -> None:
    """Prints what a run's journal shows. RunDirectoryError where it shows that questions were lost or trained twice."""
    run = RunDirectory(Path(run_dir))
    check_is_run(run.path)
    if not run.journal_path.is_file():
        rule = "a training run keeps a journal.jsonl"
        raise RunDirectoryError(rule_message(rule, got=f"none in {run.path}", cure="give the directory of such a run"))
    verdict = verify_journal(run.journal_path)
    if not verdict.is_good:
        rule = f"{run.journal_path} must show every question once"
        raise RunDirectoryError(rule_message(rule, got=verdict, cure="do not trust the run; start it again"))
    print(verdict)


class _Replay:
    """The steps that count, as events arrive."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._undone: dict[int, dict[str, Any]] = {}
        self._verdict = JournalVerdict(num_resumes=-1)  # the first line is the start

    def read(self, event: Mapping[str, Any], *, where: str) -> None:
        {"resumed": self._resume, "trained": self._train}[event["event"]](event, where)

    def verdict(self) -> JournalVerdict:
        verdict = self._verdict
        verdict.num_steps, verdict.num_resumes = len(self._steps), max(verdict.num_resumes, 0)
        verdict.num_questions = sum(event["count"] for event in self._steps)
        ids = Counter(name for event in self._steps for name in event["questions"])
        verdict.num_repeated = sum(count > 1 for count in ids.values())
        return verdict

    def _resume(self, event: Mapping[str, Any], where: str) -> None:
        step = event["step"]
        self._verdict.num_resumes += 1
        if step > len(self._steps):
            self._complain(where, f"resumed after step {step}, but only {len(self._steps)} steps were trained")
        for undone in self._steps[step:]:
            self._undone[undone["step"]] = undone
            self._verdict.num_undone += 1
        del self._steps[step:]

    def _train(self, event: Mapping[str, Any], where: str) -> None:
        step, first, names = event["step"], event["first"], event["questions"]
        expected = self._steps[-1]["first"] + self._steps[-1]["count"] if self._steps else 0
        if step != len(self._steps) + 1:
            self._complain(where, f"step {step} was trained after step {len(self._steps)}")
        if first != expected:
            what = f"{first - expected} questions lost" if first > expected else f"{expected - first} trained twice"
            self._complain(where, f"step {step} begins at question {first} instead of {expected}: {what}")
        if len(names) != event["count"]:
            self._complain(where, f"step {step} got rollouts of {len(names)} of its {event['count']} questions")
        undone = self._undone.pop(step, None)
        if undone is not None and undone["questions"] != names:
            self._complain(where, f"step {step} asked other questions than before it was undone")
        self._steps.append(dict(event))

    def _complain(self, where: str, problem: str) -> None:
        self._verdict.problems.append(f"{where}: {problem}")
