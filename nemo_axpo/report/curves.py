"""The picture of a study: each algorithm over training, median and range over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_axpo.report.palette import INK, MUTED, SURFACE, arm_colours, picture_style
from nemo_axpo.report.runs import Arm, RunRecord


@dataclass(frozen=True)
class Panel:
    """One quantity over training. ``training`` and ``evaluation`` name its metrics; either may be empty."""

    title: str
    training: str = ""
    evaluation: str = ""
    is_rate: bool = True
    """Drawn on a fixed 0–100% axis."""
    is_tool_rate: bool = False
    """A rate among tool-using rollouts: left out where there are hardly any."""


CURVE_PANELS = (
    Panel("Tool use", "rollout/tool_use", "tool_use"),
    Panel("Accuracy (Pass@1)", "rollout/accuracy", "pass@1"),
    Panel("Pass@4", "", "pass@4"),
    Panel("All-wrong rate of tool-using rollouts", "rollout/all_wrong_after", "all_wrong", is_tool_rate=True),
)
HEALTH_PANELS = (
    Panel("Loss", "update/loss", is_rate=False),
    Panel("Gradient norm", "update/grad_norm", is_rate=False),
    Panel("KL to the reference", "update/kl", is_rate=False),
    Panel("Clipped tokens", "update/clip_fraction", is_rate=False),
    Panel("|log-prob trainer − engine|, mean", "engine/logprob_diff_mean", is_rate=False),
    Panel("Recovered ÷ resampled subgroups", "rollout/recovery"),
    Panel("Truncated rollouts", "rollout/truncated", is_rate=False),
    Panel("Seconds per step", "time/step_s", is_rate=False),
)

Series = tuple[list[int], list[float]]
"""Steps and values."""
MIN_TOOL_USE = 0.02
"""Below it a step has a handful of tool calls, and the rate among their questions jumps between 0 and 1."""


@dataclass(frozen=True)
class Band:
    """Median and range over the seeds of one arm, over its steps (length S)."""

    steps_S: np.ndarray
    median_S: np.ndarray
    low_S: np.ndarray
    high_S: np.ndarray


def smooth(steps: Sequence[int], values: Sequence[float], *, width: int) -> np.ndarray:
    """Mean over the points within ``width`` steps around each point; at the ends over what is there, so no lag."""
    sums = np.cumsum([0.0, *values])
    low = np.searchsorted(steps, np.asarray(steps) - width // 2)
    high = np.searchsorted(steps, np.asarray(steps) + width // 2, side="right")
    return (sums[high] - sums[low]) / (high - low)


def band_of(series: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Band:
    """Merges the series of several seeds at every step which any of them has.

    A seed counts from its first to its last step; between its steps it is interpolated, or the median would jump
    wherever a seed has no value.
    """
    steps_S = np.array(sorted({step for steps, _ in series for step in steps}), dtype=int)
    values_NS = np.stack([np.interp(steps_S, *one, left=np.nan, right=np.nan) for one in series])
    return Band(steps_S, *(f(values_NS, axis=0) for f in (np.nanmedian, np.nanmin, np.nanmax)))


def curves_figure(
    arms: Sequence[Arm], *, title: str, panels: Sequence[Panel] = CURVE_PANELS, size: tuple[float, float] = (16, 9)
) -> Figure:
    """Small multiples over training steps; ``size`` in inches.

    ``title`` is the finding, with the reading note at the foot; empty where a page around the figure carries both.
    """
    colours = arm_colours(arms)
    with picture_style():
        figure, axes = plt.subplots(-(-len(panels) // 2), 2, figsize=size, squeeze=False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            _draw_panel(axis, panel, arms=arms, colours=colours)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis in axes[-1]:
            axis.set_xlabel("training step")
        if title:
            figure.suptitle(title, x=0.045, ha="left", fontsize=20, fontweight="bold", color=INK)
            figure.text(0.045, 0.018, reading_note(arms, panels=panels), color=MUTED, fontsize=12)
        figure.tight_layout(rect=(0.03, 0.05, 0.99, 0.985) if title else (0, 0, 1, 1), h_pad=2.2, w_pad=3.5)
    return figure


def panels_with_data(panels: Sequence[Panel], *, runs: Sequence[RunRecord]) -> tuple[Panel, ...]:
    """The panels of which some run has at least one point."""
    return tuple(panel for panel in panels if any(_has_data(panel, run=run) for run in runs))


def _has_data(panel: Panel, *, run: RunRecord) -> bool:
    return bool(_training(run, panel)[0] or _evaluations(run, panel)[0])


def _training(run: RunRecord, panel: Panel) -> Series:
    """Steps and values of a panel's training metric."""
    series = run.series(panel.training) if panel.training else ([], [])
    return _with_tool_calls(series, tool_use=run.series("rollout/tool_use")) if panel.is_tool_rate else series


def _evaluations(run: RunRecord, panel: Panel) -> Series:
    """Steps and values of a panel's evaluated rate."""
    series = run.evaluations(panel.evaluation) if panel.evaluation else ([], [])
    return _with_tool_calls(series, tool_use=run.evaluations("tool_use")) if panel.is_tool_rate else series


def _with_tool_calls(series: Series, *, tool_use: Series) -> Series:
    """The points at which enough rollouts call the tool for a rate among them to mean something."""
    rates = dict(zip(*tool_use, strict=True))
    kept = [(step, value) for step, value in zip(*series, strict=True) if rates.get(step, 1.0) >= MIN_TOOL_USE]
    return [step for step, _ in kept], [value for _, value in kept]


def _draw_panel(axis: Axes, panel: Panel, *, arms: Sequence[Arm], colours: Mapping[str, str]) -> None:
    axis.set_title(panel.title, pad=10)
    last_step = max((run.last_step for arm in arms for run in arm.runs), default=0)
    ends = [(arm, end) for arm in arms if (end := _draw_arm(axis, panel, arm=arm, colour=colours[arm.label]))]
    axis.set_xlim(0, max(last_step, 1) * 1.02)
    if panel.is_rate:
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if ends:
        _label_ends(axis, [(arm.label, end) for arm, end in ends], colours=colours)
    else:
        axis.text(0.5, 0.5, "not measured yet", ha="center", va="center", color=MUTED, transform=axis.transAxes)


def _draw_arm(axis: Axes, panel: Panel, *, arm: Arm, colour: str) -> tuple[float, float] | None:
    """Draws training as a line and evaluations as dots; returns the point at which the label belongs."""
    training = [series for run in arm.runs if (series := _training(run, panel))[0]]
    evaluations = [series for run in arm.runs if (series := _evaluations(run, panel))[0]]
    dashes = (0, (5, 1.6)) if arm.algorithm == "grpo" and "N=8" not in arm.label and "N=" in arm.label else "solid"
    end = _draw_training(axis, training, colour=colour, dashes=dashes) if training else None
    if evaluations:
        band = band_of(evaluations)
        style = {"linestyle": "none"} if training else {"linewidth": 2.6, "linestyle": dashes}
        axis.plot(band.steps_S, band.median_S, "o", color=colour, markersize=7, mec=SURFACE, mew=1.2, zorder=5, **style)
        if not training:
            _fill(axis, band, colour=colour, num_series=len(evaluations))
            end = (float(band.steps_S[-1]), float(band.median_S[-1]))
    return end


def _draw_training(
    axis: Axes, series: Sequence[tuple[list[int], list[float]]], *, colour: str, dashes: object
) -> tuple[float, float]:
    width = max(steps[-1] for steps, _ in series) // 15
    for steps, values in series if len(series) == 1 else ():
        axis.plot(steps, values, color=colour, alpha=0.22, linewidth=1)
    band = band_of([(steps, smooth(steps, values, width=width)) for steps, values in series])
    _fill(axis, band, colour=colour, num_series=len(series))
    axis.plot(band.steps_S, band.median_S, color=colour, linewidth=2.6, linestyle=dashes, zorder=4)
    return float(band.steps_S[-1]), float(band.median_S[-1])


def _fill(axis: Axes, band: Band, *, colour: str, num_series: int) -> None:
    if num_series > 1:
        axis.fill_between(band.steps_S, band.low_S, band.high_S, color=colour, alpha=0.16, linewidth=0)


def _label_ends(axis: Axes, ends: Sequence[tuple[str, tuple[float, float]]], *, colours: Mapping[str, str]) -> None:
    """Names every line at its end, in the margin, moved apart where lines meet."""
    low, high = axis.get_ylim()
    heights = spread([y for _, (_, y) in ends], min_gap=0.075 * (high - low), low=low, high=high)
    for (label, (x, y)), height in zip(ends, heights, strict=True):
        axis.annotate(
            label,
            xy=(x, y),
            xytext=(1.012, (height - low) / (high - low)),
            textcoords="axes fraction",
            color=colours[label],
            fontweight="bold",
            fontsize=13,
            va="center",
            annotation_clip=False,
            path_effects=[patheffects.withStroke(linewidth=3, foreground=SURFACE)],
        )


def spread(positions: Sequence[float], *, min_gap: float, low: float, high: float) -> list[float]:
    """Moves positions as little as needed so that neighbours are ``min_gap`` apart and all lie inside the range."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + min_gap)
    overflow = max(0.0, placed[-1] - high) if placed else 0.0
    for i in reversed(range(len(placed))):
        ceiling = placed[i + 1] - min_gap if i + 1 < len(placed) else placed[i] - overflow
        placed[i] = min(placed[i], ceiling)
    moved = dict(zip(order, placed, strict=True))
    return [max(moved[i], low) for i in range(len(positions))]


def reading_note(arms: Sequence[Arm], *, panels: Sequence[Panel]) -> str:
    """How to read the lines, bands and dots."""
    num_seeds = max((len(arm.runs) for arm in arms), default=0)
    several = f"line: median over {num_seeds} seeds, band: lowest to highest seed"
    parts = [several if num_seeds > 1 else "line: training rollouts, smoothed (thin: every step)"]
    if any(panel.evaluation for panel in panels):
        parts.append("dots: evaluation on held-out questions")
    if any(panel.training == "rollout/all_wrong_after" for panel in panels):
        parts.append("all-wrong: after resampling; only where 2% of rollouts call the tool")
    return "   ·   ".join(parts)
