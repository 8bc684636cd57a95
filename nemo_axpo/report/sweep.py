"""Who learns the tool, over direct and tool accuracy after the warm start: each point is one study from one start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from nemo_axpo.report.outcome import LEARNED, outcome
from nemo_axpo.report.palette import INK, MUTED, SURFACE, picture_style
from nemo_axpo.report.runs import RunRecord
from nemo_axpo.world.window import WarmStartWindow

AXPO_ONLY, BOTH, GRPO_ONLY, NOBODY = (
    "only AXPO learns the tool",
    "both learn it",
    "only GRPO learns it",
    "nobody learns it",
)
_LOOKS = {AXPO_ONLY: ("#0072b2", "o"), BOTH: ("#009e73", "s"), GRPO_ONLY: ("#e69f00", "^"), NOBODY: ("#8a949e", "X")}
"""Colour and marker of each outcome."""


@dataclass(frozen=True)
class SweepPoint:
    """One start and what became of it."""

    direct_accuracy: float
    tool_accuracy: float
    winner: str
    """One of the outcome texts above; GRPO counts as having learned if any of its runs did."""
    seed: int | None


def sweep_points(runs: Sequence[RunRecord]) -> tuple[SweepPoint, ...]:
    """Studies, that is runs of both algorithms in one directory with one seed, with a measured start."""
    studies: dict[tuple[object, ...], list[RunRecord]] = {}
    for run in runs:
        if "direct_accuracy" in run.start and "tool_accuracy" in run.start:
            studies.setdefault((run.path.parent, run.seed), []).append(run)
    return tuple(
        _point(members) for members in studies.values() if {"axpo", "grpo"} <= {run.algorithm for run in members}
    )


def _point(runs: Sequence[RunRecord]) -> SweepPoint:
    learned = {run.algorithm for run in runs if outcome(run).values.get("tool_use", 0.0) >= LEARNED}
    winner = {(True, True): BOTH, (True, False): AXPO_ONLY, (False, True): GRPO_ONLY, (False, False): NOBODY}
    start = runs[0].start
    return SweepPoint(
        start["direct_accuracy"], start["tool_accuracy"], winner["axpo" in learned, "grpo" in learned], runs[0].seed
    )


def sweep_figure(
    points: Sequence[SweepPoint], *, title: str = "Who learns the tool, by the start of training"
) -> Figure:
    """Scatter over the two accuracies with the quickstart's window; points of one outcome share shape and colour."""
    with picture_style():
        figure, axis = plt.subplots(figsize=(16, 9))
        limit = _upper_limit(points)
        axis.set_xlim(0, limit[0])
        axis.set_ylim(0, limit[1])
        _draw_window(axis)
        _draw_diagonal(axis, limit=min(limit))
        for point in points:
            colour, marker = _LOOKS[point.winner]
            axis.plot(
                point.direct_accuracy, point.tool_accuracy, marker, color=colour, markersize=17, mec=SURFACE, mew=1.5
            )
        _name_axes(axis)
        axis.legend(handles=_handles(points), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=15)
        figure.suptitle(title, x=0.045, ha="left", fontsize=20, fontweight="bold", color=INK)
        figure.tight_layout(rect=(0.03, 0.01, 0.99, 0.99))
    return figure


def _upper_limit(points: Sequence[SweepPoint]) -> tuple[float, float]:
    """Rounded up to the next 10% beyond the points and the window."""
    x = max([0.4, *(point.direct_accuracy for point in points)])
    y = max([0.4, *(point.tool_accuracy for point in points)])
    return min(1.0, np.ceil(x * 10 + 0.5) / 10), min(1.0, np.ceil(y * 10 + 0.5) / 10)


def _draw_window(axis: Axes) -> None:
    """The window's upper edge is the diagonal: the tool is not better than answering directly."""
    window = WarmStartWindow()
    (low, high), floor = window.direct_accuracy, window.min_tool_accuracy
    corners = [(low, floor), (high, floor), (high, high), (low, low)]
    axis.add_patch(Polygon(corners, closed=True, facecolor="#0072b2", alpha=0.12, edgecolor="none"))
    axis.annotate(
        "the quickstart's window", (high, floor), xytext=(8, -4), textcoords="offset points", color=MUTED, va="top"
    )


def _draw_diagonal(axis: Axes, *, limit: float) -> None:
    axis.plot([0, limit], [0, limit], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axis.text(
        0.02, 0.025, "tool as good as answering directly", color=MUTED, va="bottom",
        rotation=45, rotation_mode="anchor", transform_rotates_text=True,
    )  # fmt: skip


def _name_axes(axis: Axes) -> None:
    axis.set_xlabel("direct accuracy after the warm start", fontsize=15, labelpad=10)
    axis.set_ylabel("tool accuracy after the warm start", fontsize=15, labelpad=10)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(lambda value, _: f"{value:.0%}")


def _handles(points: Sequence[SweepPoint]) -> list[Line2D]:
    counts = {winner: sum(point.winner == winner for point in points) for winner in _LOOKS}
    return [
        Line2D(
            [],
            [],
            color=_LOOKS[w][0],
            marker=_LOOKS[w][1],
            markersize=14,
            mec=SURFACE,
            linestyle="none",
            label=f"{w} ({n})",
        )
        for w, n in counts.items()
        if n
    ]
