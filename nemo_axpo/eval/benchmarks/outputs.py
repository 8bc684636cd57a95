"""What an evaluation leaves behind besides its records: JSON, Markdown, LaTeX and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_axpo.eval.benchmarks.figure import save_figure
from nemo_axpo.eval.benchmarks.results import ModelResult
from nemo_axpo.eval.benchmarks.tables import latex, markdown

MARKDOWN, LATEX, FIGURE = "table.md", "table.tex", "sizes.png"


def write_tables(results: Sequence[ModelResult], directory: Path) -> tuple[Path, ...]:
    """Writes table and figure of these results; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = tuple(directory / name for name in (MARKDOWN, LATEX, FIGURE))
    paths[0].write_text(markdown(results), encoding="utf-8")
    paths[1].write_text(latex(results), encoding="utf-8")
    save_figure(results, paths[2])
    return paths
