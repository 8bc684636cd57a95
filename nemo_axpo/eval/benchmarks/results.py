"""The result of one model: ``results.json``, which tables and figures of several models are made from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_axpo.errors import RunDirectoryError, rule_message
from nemo_axpo.eval.benchmarks.scores import BenchmarkScore, KindScore
from nemo_axpo.eval.bootstrap import Estimate

FILE = "results.json"


@dataclass(frozen=True)
class ModelResult:
    """Everything that an evaluation found out about one model."""

    label: str
    """Row of the table."""
    checkpoint: str
    num_parameters: int | None
    settings: Mapping[str, Any]
    """Sampling, tools and limits."""
    scores: tuple[BenchmarkScore, ...]
    average_pass_at_1: Estimate | None
    """Plain mean over the benchmarks there are."""
    average_pass_at_k: Estimate | None
    paper_row: str | None = None
    """Row of the paper's table it is compared with."""


def write_result(result: ModelResult, directory: Path) -> Path:
    """Writes ``results.json`` whole or not at all; returns its path."""
    path = directory / FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_result(directory: Path) -> ModelResult:
    """The result in a directory, or in the file itself. RunDirectoryError where there is none, or a broken one."""
    path = directory / FILE if directory.is_dir() else directory
    try:
        return _result(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = f"{directory} must hold the {FILE} of an evaluation"
        cure = "run `nemo-axpo eval --benchmark ... --output-dir DIR` (again: it goes on where it was)"
        raise RunDirectoryError(rule_message(rule, got=repr(error), cure=cure)) from None


def _result(values: Mapping[str, Any]) -> ModelResult:
    estimates = {name: _estimate(values[name]) for name in ("average_pass_at_1", "average_pass_at_k")}
    return ModelResult(**{**values, **estimates, "scores": _scores(values["scores"])})


def _scores(values: Sequence[Mapping[str, Any]]) -> tuple[BenchmarkScore, ...]:
    return tuple(
        BenchmarkScore(
            **{
                **one,
                **{name: _estimate(one[name]) for name in ("pass_at_1", "pass_at_k", "tool_use")},
                "kinds": {kind: KindScore(**score) for kind, score in one["kinds"].items()},
            }
        )
        for one in values
    )


def _estimate(values: Mapping[str, float] | None) -> Estimate | None:
    return None if values is None else Estimate(**values)
