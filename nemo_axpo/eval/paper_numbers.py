"""The numbers that the paper prints, beside which one's own are shown; the data are in ``paper_numbers.json``.

A row is a size and a stage of training, ``"8B SFT+AXPO"``; values are percent as printed, rounded to a tenth there. Where a table
has a column of means it is kept as printed, under ``average``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

AVERAGE = "average"
"""Key of a row's plain mean over its benchmarks."""

Rows = Mapping[str, Mapping[str, float]]
"""Percent by row, then by benchmark or ``average``."""


@dataclass(frozen=True)
class ScoreTable:
    """One of the paper's smaller tables."""

    pass_at_1: Rows
    pass_at_4: Rows


@dataclass(frozen=True)
class PaperNumbers:
    """Everything the paper prints that a run can be compared with."""

    source: str
    """Paper, version and tables."""
    benchmarks: tuple[str, ...]
    """The nine, in the order of the paper's columns."""
    groups: Mapping[str, tuple[str, ...]]
    """Benchmarks under the paper's three headings."""
    pass_at_1: Rows
    """2B, 4B, 8B with Base, GRPO, SFT, SFT+GRPO, SFT+AXPO; 32B Base. All with tools, mean of four rollouts."""
    pass_at_4: Rows
    """The same rows: any of the four rollouts."""
    tool_use: Rows
    """The same rows. Of questions or of one evaluation, by their resolution (docs/evaluation.md)."""
    ablations: ScoreTable
    """AXPO at 8B without one of its parts, on four benchmarks."""
    alternatives: ScoreTable
    """Other recipes at 8B, on the same four."""
    non_agent: ScoreTable
    """Untrained models without tools; averages over the nine alone."""
    unseen_tool: ScoreTable
    """8B on MMSearch without and with a tool (image search) that training never had."""
    training: Mapping[str, float]
    """Levels and differences the paper tells of its training curves."""


@cache
def load_paper_numbers() -> PaperNumbers:
    """The packaged numbers; one object for all who ask, which nobody can change."""
    data = json.loads(files("nemo_axpo.eval").joinpath("paper_numbers.json").read_text(encoding="utf-8"))
    frozen = {name: _frozen(value) for name, value in data.items()}
    for name in ("ablations", "alternatives", "non_agent", "unseen_tool"):
        frozen[name] = ScoreTable(**frozen[name])
    return PaperNumbers(**frozen)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    return tuple(value) if isinstance(value, list) else value
