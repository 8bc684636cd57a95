"""``nemo-axpo distill``: a teacher's right answers, tools on, as trajectories for ``nemo-axpo sft``.

    config.yaml   attempts.jsonl   images/   trajectories.parquet   origin.json   report.json

Every finished question is in ``attempts.jsonl`` at once. The trajectories are chosen from there at the end, so another
share of tool calls costs a moment: change ``distill.tool_share`` and resume.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.config.schema import Config
from nemo_axpo.data.image_files import ImageFiles
from nemo_axpo.data.trajectories import (
    IMAGES_DIRECTORY,
    Origin,
    Trajectory,
    image_processor_fingerprint,
    tokenizer_fingerprint,
    write_trajectories,
)
from nemo_axpo.distill.attempt_run import attempt_questions, lost_error, open_attempts, write_report
from nemo_axpo.distill.attempts import read_attempts, require_attempts
from nemo_axpo.distill.report import histogram, percent, summarize_attempts
from nemo_axpo.distill.selection import Candidate, select
from nemo_axpo.distill.teacher import build_teacher
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.world.tiny_policy import tiny_policy


def run_distill(config: Config, *, resume: bool = False, console: Console | None = None) -> Path:
    """Attempts the questions of the config, then writes the trajectories; returns ``config.output_dir``.

    RunFailedError where questions stayed lost; what was attempted is kept, and ``resume`` goes on with the rest.
    """
    console = console or Console()
    with open_attempts(config, resume=resume) as (run, progress):
        checkpoint = config.model.path or tiny_policy(run.path, seed=config.seed)
        bench = assembly.build_workbench(config, checkpoint=checkpoint)
        attempting = attempt_questions(
            config,
            name="distill",
            build_engine=partial(build_teacher, config, bench=bench),
            bench=bench,
            run=run,
            progress=progress,
            image_files=ImageFiles(run.path / IMAGES_DIRECTORY),
        )
        num_lost = asyncio.run(attempting)
        report = write_chosen(config, bench=bench, run=run)
    console.print(describe(report), markup=False, highlight=False)
    if num_lost:
        raise lost_error(num_lost)
    return run.path


def write_chosen(config: Config, *, bench: Workbench, run: RunDirectory) -> dict[str, Any]:
    """Chooses among the right trajectories of the attempts and writes them with the report."""
    section = config.distill
    attempts = require_attempts(run.path)
    candidates = [
        Candidate(trajectory.trajectory_id, trajectory.question_id, trajectory.uses_tool)
        for attempt in read_attempts(run.path)
        for trajectory in attempt.trajectories
    ]
    chosen = select(
        candidates, max_per_question=section.max_per_question, tool_share=section.tool_share, seed=config.seed
    )
    origin = Origin(
        teacher_name(config),
        tokenizer_fingerprint(bench.renderer.tokenizer),
        image_processor_fingerprint(bench.image_processor),
        tuple(config.tools.names),
    )
    count = write_trajectories(run.path, _chosen(run.path, chosen), origin=origin)
    num_tool = sum(c.uses_tool for c in candidates if c.trajectory_id in chosen)
    report = summarize_attempts(attempts).as_dict() | {
        "num_right": len(candidates),
        "num_right_with_tool": sum(c.uses_tool for c in candidates),
        "num_trajectories": count,
        "num_trajectories_with_tool": num_tool,
        "tool_share": num_tool / count if count else None,
    }
    write_report(run.path, report)
    return report


def teacher_name(config: Config) -> str:
    """Who answers."""
    section = config.distill
    names = {"engine": config.model.path, "endpoint": section.endpoint.model, "scripted": "scripted"}
    return str(names[section.teacher])


def describe(report: Mapping[str, Any]) -> str:
    """The report in some lines."""
    solved = {int(number): count for number, count in report["solved"].items()}
    rates = f"{percent(report['accuracy'])} right, {percent(report['tool_use'])} with a tool call"
    kept = f"{report['num_trajectories']} trajectories of {report['num_right']} right rollouts"
    lines = [
        f"{report['num_questions']} questions, {report['num_rollouts']} rollouts: {rates}; questions by right rollouts:",
        *histogram(solved),
        f"{kept}, {percent(report['tool_share'])} with a tool call",
    ]
    return "\n".join(lines)


def _chosen(path: Path, chosen: set[str]) -> Iterator[Trajectory]:
    return (
        trajectory
        for attempt in read_attempts(path)
        for trajectory in attempt.trajectories
        if trajectory.trajectory_id in chosen
    )
