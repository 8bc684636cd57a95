"""What is kept of every question: one JSON object a line, written when its rollouts have ended.

A line may hold fewer rollouts than were asked for (the engine was down) and rewards that are null (no verifier could judge).
Such a question is taken up again at the next start: what is missing is sampled, what is not judged is judged, and a further
line replaces the first. A process that is killed leaves at most one half-written last line, which is cut off.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from nemo_axpo.errors import RunDirectoryError, rule_message
from nemo_axpo.metrics_log import drop_half_line

_FILES = "records*.jsonl"


@dataclass(frozen=True)
class AnsweredRollout:
    """One rollout of a question. Example: ``AnsweredRollout(2, "red", 1.0, ("image_zoom_in",), 2, 310, "answered")``."""

    number: int
    """n; its id is ``<question>/<n>``."""
    answer: str | None
    """Extracted final answer; None where none was given."""
    reward: float | None
    """1 correct, 0 wrong; None: not judged yet."""
    tools: tuple[str, ...]
    """Names of the tools it called, in order; empty for a call without a name."""
    num_turns: int
    num_tokens: int
    """Tokens the model sampled."""
    status: str
    """How it ended (``RolloutStatus``)."""
    text: str = ""
    """What the model wrote and what it was shown, as decoded; empty where texts are not kept."""

    @property
    def uses_tool(self) -> bool:
        """Whether it began a tool call."""
        return bool(self.tools)


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question with its rollouts, by number."""

    question_id: str
    kind: str
    answers: tuple[str, ...]
    """Reference answers."""
    rollouts: tuple[AnsweredRollout, ...]

    def is_complete(self, num_rollouts: int) -> bool:
        """Whether all rollouts are there and judged."""
        return not self.missing(num_rollouts) and all(rollout.reward is not None for rollout in self.rollouts)

    def missing(self, num_rollouts: int) -> tuple[int, ...]:
        """Numbers of the rollouts that are not there."""
        there = {rollout.number for rollout in self.rollouts}
        return tuple(number for number in range(num_rollouts) if number not in there)


class RecordFile:
    """The file of one process; a context manager that nobody else may enter meanwhile."""

    def __init__(self, directory: Path, *, shard: tuple[int, int] = (1, 1)) -> None:
        """``shard``: number (from 1) and count of the processes that share the questions."""
        number, count = shard
        name = "records.jsonl" if count == 1 else f"records-{number}-of-{count}.jsonl"
        self.path = directory / name

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            rule, cure = "one process may write a file of records", "wait for it, or choose another --output-dir"
            raise RunDirectoryError(rule_message(rule, got=f"another one writes {self.path}", cure=cure)) from None
        drop_half_line(self.path)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, question: AnsweredQuestion) -> None:
        """Writes one line, which is on disk when this returns."""
        self._file.write(json.dumps(asdict(question), ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_records(directory: Path, *, num_rollouts: int | None = None) -> dict[str, AnsweredQuestion]:
    """The questions in the files of all processes, by id; of several lines of one question the fullest counts.

    Texts of questions that are complete with ``num_rollouts`` are left out: nobody needs them again, and they are long.
    A half-written last line is left out. RunDirectoryError naming file and line for one that is broken.
    """
    found: dict[str, AnsweredQuestion] = {}
    for path in sorted(directory.glob(_FILES)):
        for question in _read_file(path):
            if num_rollouts is not None and question.is_complete(num_rollouts):
                question = replace(question, rollouts=tuple(replace(one, text="") for one in question.rollouts))
            before = found.get(question.question_id)
            if before is None or _extent(question) >= _extent(before):
                found[question.question_id] = question
    return found


def in_order(records: dict[str, AnsweredQuestion], question_ids: Iterable[str]) -> list[AnsweredQuestion]:
    """The records of these questions, as far as there are any."""
    return [records[question_id] for question_id in question_ids if question_id in records]


def _extent(question: AnsweredQuestion) -> tuple[int, int]:
    """Rollouts that are judged, and that there are."""
    return sum(rollout.reward is not None for rollout in question.rollouts), len(question.rollouts)


def _read_file(path: Path) -> Iterator[AnsweredQuestion]:
    """Line by line; what follows the last line break was half-written."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _read_line(line, where=f"{path} line {number}")


def _read_line(line: bytes, *, where: str) -> AnsweredQuestion:
    try:
        values: dict[str, Any] = json.loads(line)
        rollouts = tuple(AnsweredRollout(**{**one, "tools": tuple(one["tools"])}) for one in values["rollouts"])
        return AnsweredQuestion(values["question_id"], values["kind"], tuple(values["answers"]), rollouts)
    except (ValueError, KeyError, TypeError) as error:
        cure = "remove the line (its question is then asked again), or restore the file"
        raise RunDirectoryError(
            rule_message(f"{where} must be the record of a question", got=repr(error), cure=cure)
        ) from None
