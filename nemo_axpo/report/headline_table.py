"""The headline table: one line an arm, for the terminal and the page alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from nemo_axpo.report.outcome import TITLES, percent
from nemo_axpo.report.runs import Arm, RunRecord, arms_of
from nemo_axpo.report.summary import run_summary
from nemo_axpo.report.verdict import verdict


@dataclass(frozen=True)
class TableRow:
    """One line of the headline table."""

    label: str
    is_axpo: bool
    cells: tuple[str, ...]
    """Texts under the titles of ``HEADLINE_TITLES``."""


HEADLINE_TITLES = (*TITLES.values(), "Steps", "Time", "Peak memory")


def headline_rows(arms: Sequence[Arm]) -> tuple[TableRow, ...]:
    """One line per arm: the median over seeds with the range behind it, steps, wall time and memory (largest)."""
    rows = []
    for arm in arms:
        entries = [run_summary(run) for run in arm.runs]
        rates = [_with_range([entry[name] for entry in entries]) for name in TITLES]
        steps = max(entry["steps"] for entry in entries)
        minutes = _largest(entries, "wall_s", lambda seconds: f"{seconds / 60:.1f} min")
        memory = _largest(entries, "peak_memory_gib", lambda gib: f"{gib:.1f} GiB")
        rows.append(TableRow(arm.label, arm.algorithm == "axpo", (*rates, str(steps), minutes, memory)))
    return tuple(rows)


def _with_range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return percent(known[0] if known else None)
    low, high = percent(min(known)), percent(max(known))
    spread = f" ({low[:-1]}–{high[:-1]})" if low != high else ""
    return f"{percent(statistics.median(known))}{spread}"


def _largest(entries: Sequence[Mapping[str, Any]], name: str, form: Callable[[float], str]) -> str:
    values = [entry[name] for entry in entries if entry[name] is not None]
    return form(max(values)) if values else "–"


def print_summary(runs: Sequence[RunRecord], *, console: Console) -> None:
    """The table AXPO against GRPO, one column an arm so that it fits 80 characters, and the verdict."""
    arms = arms_of(runs)
    rows = headline_rows(arms)
    is_study = any(len(arm.runs) > 1 for arm in arms)
    table = Table(caption="median over the seeds (lowest–highest)" if is_study else None)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row.label, justify="right", style="bold" if row.is_axpo else "")
    for index, title in enumerate(HEADLINE_TITLES):
        table.add_row(title, *(row.cells[index] for row in rows))
    console.print(table)
    console.print(verdict(runs), highlight=False, markup=False)
