"""``nemo-axpo report``: everything a report consists of, from whatever the runs left so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console

from nemo_axpo.report.comparison import comparison_figure
from nemo_axpo.report.curves import CURVE_PANELS, curves_figure, panels_with_data
from nemo_axpo.report.headline_table import print_summary
from nemo_axpo.report.html_report import write_report
from nemo_axpo.report.runs import RunRecord, arms_of, find_runs
from nemo_axpo.report.showcase import RecordedTree, recorded_trees, showcase
from nemo_axpo.report.summary import write_summary
from nemo_axpo.report.sweep import sweep_figure, sweep_points
from nemo_axpo.report.tree_picture import tree_figure
from nemo_axpo.report.verdict import headline

PICTURE_DPI = 100
"""Figures are 16 inches wide: 1600 pixels, the width of a README on a dense screen."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    html: Path
    summary: Path
    pictures: tuple[Path, ...]


def build_report(
    directories: Sequence[Path],
    *,
    output: Path | None = None,
    max_trees: int = 24,
    console: Console | None = None,
) -> Report:
    """Reads every run in or below ``directories`` and writes report.html, summary.json and PNGs to ``output``.

    Unfinished and interrupted runs are reported as far as they got. ``output`` defaults to the first directory;
    ``console`` gets the table and the verdict. ValueError where no directory holds anything to report.
    """
    runs = find_runs(directories)
    output = Path(output or directories[0])
    output.mkdir(parents=True, exist_ok=True)
    trees = recorded_trees(runs, max_trees=max_trees)
    report = Report(output / "report.html", output / "summary.json", _write_pictures(output, runs=runs, trees=trees))
    write_summary(report.summary, runs=runs)
    write_report(report.html, runs=runs, trees=trees)
    if console:
        print_summary(runs, console=console)
    return report


def _write_pictures(output: Path, *, runs: Sequence[RunRecord], trees: Sequence[RecordedTree]) -> tuple[Path, ...]:
    """Each picture for which there is something to draw."""
    arms, title = arms_of(runs), headline(runs)
    figures: dict[str, Figure] = {}
    panels = panels_with_data(CURVE_PANELS, runs=runs)
    if panels:
        figures["curves"] = curves_figure(arms, title=title, panels=panels)
    if len(runs) > 1:
        figures["comparison"] = comparison_figure(arms, title=title)
    points = sweep_points(runs)
    if len(points) > 1:
        figures["sweep"] = sweep_figure(points)
    best = showcase(trees)
    if best:
        figures["tree"] = tree_figure(best.tree, run_dir=best.run_dir)
    return tuple(_save(figure, output / f"{name}.png") for name, figure in figures.items())


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=PICTURE_DPI, metadata={"Software": None})
    plt.close(figure)
    return path
