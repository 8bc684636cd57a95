"""``attempts.jsonl``: what became of every question that was attempted, a line each; what a killed command left is kept.

    {"index": 7, "question_id": "q7", "source": "world", "rewards": [1.0, 0.0], "uses_tool": [true, false],
     "trajectories": [{…}]}

A question is attempted when all its K rollouts are there; its pictures are written before its line. So a line stands for
work that need not be done again, whatever happens after it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nemo_axpo.data.trajectories import Trajectory, trajectory_from_row
from nemo_axpo.errors import DataError, rule_message
from nemo_axpo.metrics_log import drop_half_line

FILE = "attempts.jsonl"


@dataclass(frozen=True)
class Attempt:
    """K rollouts of one question."""

    index: int
    """Of the question in its stream."""
    question_id: str
    source: str
    rewards: tuple[float, ...]
    """1 correct, 0 wrong, one per rollout."""
    uses_tool: tuple[bool, ...]
    trajectories: tuple[Trajectory, ...] = ()
    """Of the correct ones whose tool calls could all be read, where they were asked for."""

    @property
    def num_correct(self) -> int:
        """Of the K."""
        return sum(reward > 0 for reward in self.rewards)


class AttemptLog:
    """Appends attempts; begins by dropping a half-written last line."""

    def __init__(self, directory: str | Path) -> None:
        self._path = Path(directory) / FILE
        drop_half_line(self._path)
        self.done = {attempt.index for attempt in read_attempts(directory)}
        """Indices of the questions that need not be attempted again."""
        self._file = self._path.open("a", encoding="utf-8")

    def append(self, attempt: Attempt) -> None:
        """Writes the line to disk."""
        self._file.write(json.dumps(asdict(attempt), ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add(attempt.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def read_attempts(directory: str | Path) -> Iterator[Attempt]:
    """The attempts of a directory in the order in which they ended; none where nothing was attempted.

    A half-written last line is left out. DataError naming the line for any other that cannot be read.
    """
    path = Path(directory) / FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield _attempt(json.loads(line))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                cure = "remove the line: its question is attempted again"
                rule = f"{path} line {number} must be an attempt"
                raise DataError(rule_message(rule, got=repr(error), cure=cure)) from None


def require_attempts(directory: str | Path) -> Sequence[Attempt]:
    """All attempts of a directory, without trajectories. DataError where there are none."""
    attempts = [
        Attempt(attempt.index, attempt.question_id, attempt.source, attempt.rewards, attempt.uses_tool)
        for attempt in read_attempts(directory)
    ]
    if not attempts:
        cure = "give the --output-dir of `nemo-axpo distill` or `nemo-axpo filter`"
        raise DataError(rule_message(f"{directory} must hold {FILE}", got="no attempt", cure=cure))
    return attempts


def _attempt(values: Mapping[str, Any]) -> Attempt:
    return Attempt(
        values["index"],
        values["question_id"],
        values["source"],
        tuple(values["rewards"]),
        tuple(values["uses_tool"]),
        tuple(trajectory_from_row(row) for row in values["trajectories"]),
    )
