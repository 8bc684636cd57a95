"""What the commands that attempt questions share: their directory, their display, their report."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nemo_axpo.config.schema import Config
from nemo_axpo.distill.attempts import FILE, Attempt, read_attempts
from nemo_axpo.errors import RunDirectoryError, RunFailedError, rule_message
from nemo_axpo.loop import QuestionSource
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.run_directory import RunDirectory, open_run_directory

REPORT_FILE = "report.json"
_NUM_UPDATES = 200
"""Redraws of the display: smooth, and nothing beside the sampling."""


@contextlib.contextmanager
def open_attempts(config: Config, *, resume: bool) -> Iterator[tuple[RunDirectory, ProgressDisplay]]:
    """Claims the output directory. RunDirectoryError where it holds attempts and ``resume`` was not said."""
    with open_run_directory(config, resume=resume) as run:
        if not resume and (run.path / FILE).exists():
            cure = "continue it with --resume, or choose another --output-dir"
            raise RunDirectoryError(rule_message("output_dir already holds attempts", got=run.path, cure=cure))
        shown = {"right": "right", "tool_use": "tool use"}
        with ProgressDisplay(shown=shown, unit="question") as progress:
            yield run, progress


def num_questions_of(stream: QuestionSource, *, wanted: int | None) -> int:
    """How many questions are attempted: all of a file's, or so many. ValueError for a stream without end and a number."""
    size = len(stream) if hasattr(stream, "__len__") else None
    if wanted is None and size is None:
        cure = "set distill.num_questions or filter.num_questions"
        raise ValueError(rule_message("a stream without end needs a number of questions", got="null", cure=cure))
    return min(count for count in (wanted, size) if count is not None)


def attempt_counter(progress: ProgressDisplay, directory: Path, *, total: int, name: str) -> Callable[[Attempt], None]:
    """Counts attempts on the display, those of an earlier call included."""
    done = rollouts = right = with_tool = 0
    for attempt in read_attempts(directory):
        done, rollouts = done + 1, rollouts + len(attempt.rewards)
        right, with_tool = right + attempt.num_correct, with_tool + sum(attempt.uses_tool)
    every = max(1, total // _NUM_UPDATES)
    progress.start(name, total=total, done=done)

    def count(attempt: Attempt) -> None:
        nonlocal done, rollouts, right, with_tool
        done, rollouts = done + 1, rollouts + len(attempt.rewards)
        right, with_tool = right + attempt.num_correct, with_tool + sum(attempt.uses_tool)
        if done % every == 0 or done == total:
            progress.update(name, step=done, metrics={"right": right / rollouts, "tool_use": with_tool / rollouts})

    return count


def write_report(directory: Path, report: Mapping[str, object]) -> None:
    """``report.json``, whole or not at all."""
    temporary = directory / f".{REPORT_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(dict(report), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, directory / REPORT_FILE)


def lost_error(num_lost: int) -> RunFailedError:
    """What a command says at its end where questions stayed lost."""
    rule = "every question must be attempted"
    cure = "see the warnings above, and go on with --resume: the others are kept"
    return RunFailedError(rule_message(rule, got=f"{num_lost} with lost rollouts", cure=cure))
