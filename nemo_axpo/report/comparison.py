"""Where every seed ended: one dot a run, the algorithms side by side, the state before training as a tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nemo_axpo.report.outcome import TITLES, outcome
from nemo_axpo.report.palette import INK, MUTED, SURFACE, arm_colours, picture_style
from nemo_axpo.report.runs import Arm, RunRecord

_NAMES = ("tool_use", "pass@1", "pass@4")
_MARKERS = ("s", "D", "^", "v", "P")
"""Shapes beside the colours; AXPO is always the disc."""


def comparison_figure(arms: Sequence[Arm], *, title: str) -> Figure:
    """Final tool use, Pass@1 and Pass@4 of every run, by seed."""
    colours = arm_colours(arms)
    with picture_style():
        figure, axes = plt.subplots(1, len(_NAMES), figsize=(16, 7), sharey=True)
        for axis, name in zip(axes, _NAMES, strict=True):
            _draw_rate(axis, name, arms=arms, colours=colours)
        figure.suptitle(title, x=0.045, ha="left", fontsize=20, fontweight="bold", color=INK)
        handles = [_handle(colours[arm.label], marker_of(arm, arms=arms), arm.label) for arm in reversed(arms)]
        handles.append(Line2D([], [], color=MUTED, linewidth=2.5, label="before training"))
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.035, 0.0), ncols=len(handles), frameon=False)
        figure.tight_layout(rect=(0.03, 0.07, 0.99, 0.98), w_pad=2.5)
    return figure


def marker_of(arm: Arm, *, arms: Sequence[Arm]) -> str:
    """Matplotlib marker of an arm; the same in every picture of one study."""
    others = [other.label for other in arms if other.algorithm != "axpo"]
    return "o" if arm.algorithm == "axpo" else _MARKERS[others.index(arm.label) % len(_MARKERS)]


def _handle(colour: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, markersize=11, mec=SURFACE, linestyle="none", label=label)


def _draw_rate(axis: Axes, name: str, *, arms: Sequence[Arm], colours: Mapping[str, str]) -> None:
    seeds = sorted({_seed_name(run) for arm in arms for run in arm.runs}, key=lambda seed: (len(seed), seed))
    axis.set_title(TITLES[name], pad=10)
    axis.set_xticks(range(len(seeds)), seeds)
    axis.set_xlim(-0.6, len(seeds) - 0.4)
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.grid(visible=False, axis="x")
    for arm_index, arm in enumerate(arms):
        shift = 0.25 * (arm_index - (len(arms) - 1) / 2)
        for run in arm.runs:
            x = seeds.index(_seed_name(run)) + shift
            _draw_run(axis, run, name, x=x, colour=colours[arm.label], marker=marker_of(arm, arms=arms))


def _draw_run(axis: Axes, run: RunRecord, name: str, *, x: float, colour: str, marker: str) -> None:
    now, before = outcome(run).values.get(name), run.initial.get(name)
    if now is not None and before is not None:
        axis.plot([x, x], [before, now], color=colour, alpha=0.4, linewidth=2.5, zorder=2)
    if before is not None:
        axis.plot([x - 0.11, x + 0.11], [before, before], color=MUTED, linewidth=2.5, zorder=3)
    if now is not None:
        axis.plot(x, now, marker, color=colour, markersize=11, mec=SURFACE, zorder=4, clip_on=False)


def _seed_name(run: RunRecord) -> str:
    return run.name if run.seed is None else f"seed {run.seed}"
