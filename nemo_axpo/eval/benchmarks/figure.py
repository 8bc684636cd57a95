"""Pass@1 and Pass@k against model size: the paper's methods as lines, one's own models as points with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_axpo.eval.benchmarks.results import ModelResult
from nemo_axpo.eval.bootstrap import Estimate
from nemo_axpo.eval.paper_numbers import Rows, load_paper_numbers
from nemo_axpo.report.palette import AXPO, GRPO_COLOURS, INK, MUTED, OTHER_COLOURS, picture_style

_ROW = re.compile(r"(\d+(?:\.\d+)?)B (.+)")
_COLOURS = {
    "SFT+AXPO": AXPO,
    "SFT+GRPO": GRPO_COLOURS[0],
    "GRPO": GRPO_COLOURS[1],
    "SFT": OTHER_COLOURS[0],
    "Base": MUTED,
}
_SIZE_IN = (13, 5.6)


def size_figure(results: Sequence[ModelResult]) -> Figure:
    """Two panels, of means over the paper's benchmarks that all ``results`` share; without any, of their own averages."""
    paper, shared = load_paper_numbers(), shared_paper_names(results)
    ks = {score.k for result in results for score in result.scores}
    panels = [
        ("Pass@1", paper.pass_at_1, "pass_at_1"),
        (f"Pass@{ks.pop()}" if len(ks) == 1 else "Pass@4", paper.pass_at_4, "pass_at_k"),
    ]
    with picture_style():
        figure, axes = plt.subplots(1, 2, figsize=_SIZE_IN)
        for axis, (title, printed, attribute) in zip(axes, panels, strict=True):
            if shared:
                _draw_paper(axis, printed, names=shared)
            _draw_own(axis, results, attribute=attribute, names=shared)
            _finish(axis, title=title)
        what = f"{len(shared)} of the paper's benchmarks" if shared else "own benchmarks"
        axes[0].set_ylabel(f"average of {what}, %")
        axes[0].legend(frameon=False, fontsize=10)
        figure.tight_layout()
    return figure


def save_figure(results: Sequence[ModelResult], path: Path) -> None:
    """PNG or SVG, by the suffix."""
    figure = size_figure(results)
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def shared_paper_names(results: Sequence[ModelResult]) -> tuple[str, ...]:
    """Benchmarks of the paper that every result has."""
    sets = [{score.paper_name for score in result.scores} for result in results]
    return tuple(name for name in load_paper_numbers().benchmarks if sets and all(name in found for found in sets))


def paper_lines(rows: Rows, *, names: Sequence[str]) -> Mapping[str, list[tuple[float, float]]]:
    """Method → (billions of parameters, mean in percent over ``names``), by size."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row, values in rows.items():
        match = _ROW.fullmatch(row)
        assert match, f"{row!r} is no row of the paper"
        lines.setdefault(match[2], []).append((float(match[1]), sum(values[name] for name in names) / len(names)))
    return {method: sorted(points) for method, points in lines.items()}


def size_of(result: ModelResult) -> float | None:
    """Billions of parameters: of the label (``8B …``), else counted; None where neither is known."""
    match = re.match(r"(\d+(?:\.\d+)?)B\b", result.label)
    if match:
        return float(match[1])
    return None if result.num_parameters is None else result.num_parameters / 1e9


def _draw_paper(axis: Axes, rows: Rows, *, names: Sequence[str]) -> None:
    for method, points in paper_lines(rows, names=names).items():
        sizes, values = zip(*points, strict=True)
        colour = _COLOURS.get(method, INK)
        axis.plot(sizes, values, "--o", color=colour, markersize=4, linewidth=1.2, label=f"{method} (paper)")


def own_average(result: ModelResult, attribute: str, *, names: Sequence[str]) -> Estimate | None:
    """Mean over the paper's benchmarks ``names``, or over all where there are none; its interval where these are all."""
    average = getattr(result, f"average_{attribute}")
    scores = [score for score in result.scores if score.paper_name in names]
    if not scores or len(scores) == len(result.scores):
        return average
    return Estimate(sum(getattr(score, attribute).value for score in scores) / len(scores))


def _draw_own(axis: Axes, results: Sequence[ModelResult], *, attribute: str, names: Sequence[str]) -> None:
    for result in results:
        size, average = size_of(result), own_average(result, attribute, names=names)
        if size is None or average is None:
            continue
        method = result.label.partition(" ")[2]
        colour = _COLOURS.get(method, INK)
        axis.errorbar(
            [size], [100 * average.value], yerr=_bars(average), fmt="D", color=colour, markersize=8, capsize=4,
            label=result.label, zorder=3,
        )  # fmt: skip


def _bars(average: Estimate) -> list[list[float]] | None:
    if average.low is None or average.high is None:
        return None
    return [[100 * (average.value - average.low)], [100 * (average.high - average.value)]]


def _finish(axis: Axes, *, title: str) -> None:
    axis.set_title(title)
    axis.set_xscale("log")
    sizes = sorted({float(tick) for line in axis.lines for tick in line.get_xdata()})
    axis.set_xticks(sizes, [f"{size:g}B" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("model size, parameters")
