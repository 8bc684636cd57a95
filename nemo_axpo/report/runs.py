"""Run directories as records. A run may still be going, may have been killed, or may have left only some of its files.

    <run>/config.yaml   <run>/metrics.jsonl   <run>/evaluation.json   <run>/rollouts/step_XXXXX.jsonl   <run>/images/

A study directory holds several run directories, at most three levels below it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

METRICS, CONFIG, EVALUATION, ROLLOUTS = "metrics.jsonl", "config.yaml", "evaluation.json", "rollouts"
EVALUATION_NAMES = ("pass@1", "pass@4", "tool_use", "tool_accuracy", "direct_accuracy", "all_wrong")
"""Rates in [0, 1] that an evaluation reports."""
WARM_START = "warm_start"
"""Supervised training beside the runs that start from it; its result is their ``initial`` evaluation."""
_WITHOUT_RUNS = {WARM_START, "checkpoints", "rollouts", "images", "tensorboard"}
_SEARCH_DEPTH = 3


@dataclass(frozen=True)
class RunRecord:
    """One training run, as far as it got."""

    path: Path
    algorithm: str
    """Name in the config; empty where the run has none."""
    num_rollouts: int | None
    """N."""
    seed: int | None
    num_steps: int | None
    """Planned steps; None where the config does not tell."""
    metrics: tuple[Mapping[str, float], ...] = ()
    """One mapping a step, ascending; values that are not finite numbers are left out."""
    initial: Mapping[str, float] = field(default_factory=dict)
    """Evaluation before the first step (after the warm start)."""
    measured_start: Mapping[str, float] = field(default_factory=dict)
    """Rates of the warm start beside the run, measured in groups of N; empty where there is none."""
    final: Mapping[str, float] = field(default_factory=dict)
    """Evaluation after the last step; empty while the run goes."""

    @property
    def name(self) -> str:
        """Directory name."""
        return self.path.name

    @property
    def start(self) -> Mapping[str, float]:
        """Where training began: the warm start's own measurement, else the run's first evaluation."""
        return self.measured_start or self.initial

    @property
    def last_step(self) -> int:
        """Last step with metrics; 0 before the first."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def is_finished(self) -> bool:
        """Whether the final evaluation is there or the planned number of steps was reached."""
        return bool(self.final) or (self.num_steps is not None and self.last_step >= self.num_steps)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, over the steps that have it."""
        points = [(int(row["step"]), row[name]) for row in self.metrics if name in row]
        return [step for step, _ in points], [value for _, value in points]

    def evaluations(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one evaluated rate: before training, at evaluation steps, after training."""
        points = {0: self.initial[name]} if name in self.initial else {}
        points |= dict(zip(*self.series(f"eval/{name}"), strict=True))
        if name in self.final:
            points[max(self.last_step, 1)] = self.final[name]
        return list(points), list(points.values())

    @cached_property
    def rollout_files(self) -> tuple[Path, ...]:
        """Files of recorded trees, by step."""
        return tuple(sorted((self.path / ROLLOUTS).glob("step_*.jsonl")))


# -------------------------------------------------------------------------------------------------------- reading
def find_runs(directories: Iterable[Path]) -> tuple[RunRecord, ...]:
    """Every run in or below the directories, by path.

    ValueError where a directory does not exist, or where nothing in any of them was recorded.
    """
    roots = [Path(directory) for directory in directories]
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"a report is made from run directories; {root} is no directory: correct the path")
    paths = dict.fromkeys(path for root in roots for path in _run_paths(root, depth=_SEARCH_DEPTH))
    runs = tuple(run for run in map(read_run, paths) if run.metrics or run.initial or run.final or run.rollout_files)
    if not runs:
        names = ", ".join(str(root) for root in roots)
        raise ValueError(
            f"a report needs a run with at least one step, evaluation or recorded rollout; found none in {names} "
            f"({METRICS}, {EVALUATION} and {ROLLOUTS}/ are missing or empty): train first, or name another directory"
        )
    return runs


def _run_paths(root: Path, *, depth: int) -> Iterator[Path]:
    if any((root / name).exists() for name in (METRICS, EVALUATION, ROLLOUTS)):
        yield root
    if depth:
        for child in sorted(root.iterdir()):
            if child.is_dir() and child.name not in _WITHOUT_RUNS and not child.name.startswith("."):
                yield from _run_paths(child, depth=depth - 1)


def read_run(path: Path) -> RunRecord:
    """One run directory; files that are not there (yet) leave their fields empty."""
    config = _read_config(path / CONFIG)
    evaluation = _read_json(path / EVALUATION)
    return RunRecord(
        path=path.resolve(),
        algorithm=str(_lookup(config, "algorithm.name") or ""),
        num_rollouts=_lookup(config, "algorithm.num_rollouts"),
        seed=_lookup(config, "seed"),
        num_steps=_lookup(config, "train.num_steps"),
        metrics=read_metrics(path / METRICS),
        initial=evaluated_rates(evaluation.get("initial") or {}),
        measured_start=evaluated_rates(_read_json(path.parent / WARM_START / f"{WARM_START}.json")),
        final=evaluated_rates(evaluation.get("final") or {}),
    )


def read_metrics(path: Path) -> tuple[Mapping[str, float], ...]:
    """Rows by step, the last one of a step winning; a half-written last line is left out.

    ValueError where another line is broken: that file was damaged, not interrupted.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows: dict[int, Mapping[str, float]] = {}
    for number, line in enumerate(lines, start=1):
        row = _parse_metrics(line, is_last=number == len(lines), where=f"{path}, line {number}")
        if row is not None:
            rows[int(row["step"])] = row
    return tuple(rows[step] for step in sorted(rows))


def _parse_metrics(line: str, *, is_last: bool, where: str) -> Mapping[str, float] | None:
    """The finite numbers of one line; a line without its newline may be cut anywhere."""
    if not line.strip():
        return None
    try:
        row = json.loads(line)
        int(row["step"])
    except (ValueError, KeyError, TypeError) as error:
        if is_last:
            return None
        raise ValueError(f"a metrics line is a JSON object with its step; {where} is not: remove it") from error
    return _finite_numbers(row)


def _finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}


def evaluated_rates(values: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation under the names of ``EVALUATION_NAMES`` (``pass_at_4`` and ``pass@4`` are the same)."""
    return {key.replace("pass_at_", "pass@"): value for key, value in _finite_numbers(values).items()}


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file does not exist. ValueError where it is broken."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must hold a JSON object, not this ({error}): delete it or evaluate again") from error


def _read_config(path: Path) -> dict[str, Any]:
    """The resolved config; empty where there is none. ValueError where it is no YAML mapping."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must hold the run's config as YAML, and does not: restore it or delete it") from error
    return config if isinstance(config, dict) else {}


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


# ----------------------------------------------------------------------------------------------------------- arms
@dataclass(frozen=True)
class Arm:
    """The runs that differ only in their seed."""

    label: str
    """Example: ``GRPO N=10``."""
    algorithm: str
    runs: tuple[RunRecord, ...]


def arms_of(runs: Sequence[RunRecord]) -> tuple[Arm, ...]:
    """Runs grouped by algorithm and N, GRPO first, AXPO last (so that it is drawn on top)."""
    by_label: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_label.setdefault(_label(run, runs=runs), []).append(run)
    arms = [Arm(label, members[0].algorithm, tuple(members)) for label, members in by_label.items()]
    return tuple(sorted(arms, key=lambda arm: (arm.algorithm == "axpo", arm.runs[0].num_rollouts or 0, arm.label)))


def _label(run: RunRecord, *, runs: Sequence[RunRecord]) -> str:
    """``AXPO`` or ``GRPO N=8``; the directory name where another run beside it would carry the same label."""
    twins = [r for r in runs if (r.algorithm, r.num_rollouts, r.seed) == (run.algorithm, run.num_rollouts, run.seed)]
    if not run.algorithm or any(twin.name != run.name and twin.path.parent == run.path.parent for twin in twins):
        return run.name
    sizes = {other.num_rollouts for other in runs if other.algorithm == run.algorithm}
    is_plain = run.num_rollouts is None or (run.algorithm == "axpo" and len(sizes) == 1)
    return run.algorithm.upper() if is_plain else f"{run.algorithm.upper()} N={run.num_rollouts}"


def warm_starts(runs: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """One run for each evaluation before training: runs which began from the same checkpoint share it."""
    kept: dict[tuple[Any, ...], RunRecord] = {}
    for run in runs:
        if run.start:
            kept.setdefault((run.path.parent, run.seed, *sorted(run.start.items())), run)
    return tuple(kept.values())
