"""``report.html``: one file, nothing outside it, nothing a model wrote can run in it.

Every text goes through jinja2's escaping; beside it a content security policy forbids every request, and every script
but the page's own, which it names by hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nemo_axpo.report import palette
from nemo_axpo.report.curves import CURVE_PANELS, HEALTH_PANELS, curves_figure, panels_with_data, reading_note
from nemo_axpo.report.headline_table import HEADLINE_TITLES, TableRow, headline_rows
from nemo_axpo.report.outcome import TITLES, outcome, percent
from nemo_axpo.report.runs import WARM_START, RunRecord, arms_of, warm_starts
from nemo_axpo.report.showcase import RecordedTree, showcase
from nemo_axpo.report.tree_view import TreeView, tree_view
from nemo_axpo.report.verdict import headline, verdict
from nemo_axpo.world.window import WarmStartWindow

_THEMED = {
    palette.INK: "ink",
    palette.MUTED: "muted",
    palette.GRID: "line",
    palette.SURFACE: "surface",
    palette.AXPO: "axpo",
    palette.GRPO_COLOURS[0]: "grpo",
}
"""Colours of the pictures that follow the page's light or dark theme, and their names in report.css."""


@dataclass(frozen=True)
class StartRow:
    """One warm start: its name and, under each title, the rate and whether it lies in the window (None: no rule)."""

    label: str
    cells: tuple[tuple[str, bool | None], ...]


START_NAMES = ("tool_use", "tool_accuracy", "direct_accuracy", "all_wrong", "pass@1", "pass@4")


def write_report(path: Path, *, runs: Sequence[RunRecord], trees: Sequence[RecordedTree]) -> None:
    """Writes the page as a whole."""
    partial = path.with_suffix(".tmp")
    partial.write_text(render_report(runs=runs, trees=trees), encoding="utf-8")
    partial.replace(path)


def render_report(*, runs: Sequence[RunRecord], trees: Sequence[RecordedTree]) -> str:
    """The page as HTML text."""
    arms = arms_of(runs)
    views = _tree_views(trees)
    script = _asset("report.js")
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=headline(runs),
            verdict=verdict(runs),
            titles=HEADLINE_TITLES,
            rows=headline_rows(arms),
            seeds=seed_rows(runs) if any(len(arm.runs) > 1 for arm in arms) else (),
            seed_titles=tuple(TITLES.values()),
            sources=sorted({outcome(run).source for run in runs}),
            start_titles=tuple(TITLES[name] for name in START_NAMES),
            starts=start_rows(runs),
            has_window=has_window(runs),
            window=WarmStartWindow(),
            curves=_panels_svg(runs, CURVE_PANELS),
            curves_note=reading_note(arms, panels=CURVE_PANELS),
            health=_panels_svg(runs, HEALTH_PANELS),
            trees=views,
            shown=_shown_id(trees, views=views),
            style=Markup(_asset("report.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> jinja2.Environment:
    loader = jinja2.FunctionLoader(_asset)
    # Escaping by file name would miss a renamed template, so it is on for all of them.
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _asset(name: str) -> str:
    return resources.files("nemo_axpo.report").joinpath("templates", name).read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- tables
def seed_rows(runs: Sequence[RunRecord]) -> tuple[TableRow, ...]:
    """One line per run, by seed."""
    labelled = [(arm, run) for arm in arms_of(runs) for run in arm.runs]
    labelled.sort(key=lambda pair: (pair[1].seed is None, pair[1].seed or 0))
    return tuple(
        TableRow(f"{arm.label}, seed {run.seed}", arm.algorithm == "axpo", _rates(outcome(run).values))
        for arm, run in labelled
    )


def _rates(values: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(percent(values.get(name)) for name in TITLES)


def has_window(runs: Sequence[RunRecord]) -> bool:
    """Whether the runs began from a warm start beside them, which the window of the embedded world is for."""
    return any((run.path.parent / WARM_START).is_dir() for run in runs)


def start_rows(runs: Sequence[RunRecord]) -> tuple[StartRow, ...]:
    """The evaluations before training, each rate with its place in the window."""
    window, judged = WarmStartWindow(), has_window(runs)
    rows = []
    for run in warm_starts(runs):
        checks = window.checks(run.start) if judged else {}
        cells = tuple((percent(run.start.get(name), digits=1), checks.get(name)) for name in START_NAMES)
        rows.append(StartRow("before training" if run.seed is None else f"seed {run.seed}", cells))
    return tuple(rows)


# -------------------------------------------------------------------------------------------------------- pictures
def _panels_svg(runs: Sequence[RunRecord], panels: Sequence) -> Markup:
    known = panels_with_data(panels, runs=runs)
    if not known:
        return Markup("")
    size = (13.0, 3.6 * -(-len(known) // 2))
    return inline_svg(curves_figure(arms_of(runs), title="", panels=known, size=size))


def inline_svg(figure: Figure) -> Markup:
    """The figure as an SVG element which takes its themed colours from the page; closes the figure."""
    buffer = io.StringIO()
    with palette.picture_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, name in _THEMED.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return Markup(re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1))


# ----------------------------------------------------------------------------------------------------------- trees
def _tree_views(trees: Sequence[RecordedTree]) -> tuple[TreeView, ...]:
    return tuple(
        tree_view(recorded.tree, run_dir=recorded.run_dir, run=recorded.run, tree_id=f"tree-{index}")
        for index, recorded in enumerate(trees)
    )


def _shown_id(trees: Sequence[RecordedTree], *, views: Sequence[TreeView]) -> str:
    best = showcase(trees)
    return next((view.tree_id for recorded, view in zip(trees, views, strict=True) if recorded is best), "")
