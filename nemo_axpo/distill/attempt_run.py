"""What the commands that attempt questions share: their directory, their display, the attempts themselves, their report."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.config.schema import Config
from nemo_axpo.data.image_files import ImageFiles
from nemo_axpo.distill.attempts import FILE, Attempt, AttemptLog, read_attempts
from nemo_axpo.distill.collect import Collector, CollectSettings
from nemo_axpo.engines.base import Engine
from nemo_axpo.errors import RunDirectoryError, RunFailedError, rule_message
from nemo_axpo.loop import QuestionSource
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.rewards.base import require_verifiers
from nemo_axpo.rollouts.seeds import derive_seed
from nemo_axpo.run_directory import RunDirectory, open_run_directory

if TYPE_CHECKING:
    from torch import Tensor

REPORT_FILE = "report.json"
_NUM_CHECKED = 4
"""Questions on whose own answers the verifiers are tried before anything is sampled."""
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


async def attempt_questions(
    config: Config,
    *,
    name: Literal["distill", "filter"],
    build_engine: Callable[[], Engine],
    bench: Workbench,
    run: RunDirectory,
    progress: ProgressDisplay,
    weights: Iterable[tuple[str, Tensor]] | None = None,
    image_files: ImageFiles | None = None,
) -> int:
    """Attempts the training stream's questions as the section ``name`` says; returns how many stayed lost.

    ``build_engine``: what samples, closed at the end. ``weights``: loaded into it once the verifiers are known to work; None:
    it has them. ``image_files``: where pictures of right rollouts go; None keeps rewards alone.
    """
    section = getattr(config, name)
    stream = assembly.build_questions(config, stream="train", seed=config.seed, images=bench.images)
    settings = CollectSettings(
        num_questions_of(stream, wanted=section.num_questions),
        section.num_rollouts,
        seed=derive_seed(name, config.seed),
        num_concurrent=section.num_concurrent,
    )
    engine = build_engine()
    try:
        require_verifiers(await bench.verifiers.measure(stream.take(0, min(_NUM_CHECKED, settings.num_questions))))
        bench.images.retain(())
        if weights is not None:
            engine.load_weights(weights, policy_version=0)
        sampling = section.model_dump(include={"temperature", "top_p", "top_k"})
        with AttemptLog(run.path) as log:
            collector = Collector(
                stream,
                assembly.build_producer(config, bench=bench, engine=engine, **sampling),
                images=bench.images,
                log=log,
                settings=settings,
                image_files=image_files,
                on_attempt=attempt_counter(progress, run.path, total=settings.num_questions, name=name),
            )
            return (await collector.run()).num_lost
    finally:
        await bench.verifiers.close()
        await engine.close()


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
