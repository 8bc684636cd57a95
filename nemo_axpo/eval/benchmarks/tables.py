"""Results as Markdown and LaTeX, in the layout of the paper's table: benchmarks under their groups, the average last."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from nemo_axpo.eval.benchmarks.results import ModelResult
from nemo_axpo.eval.benchmarks.rows import Block, Cell, Column, Row, blocks_of, columns_of
from nemo_axpo.eval.paper_numbers import load_paper_numbers

AVERAGE = "Average"
_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def markdown(results: Sequence[ModelResult]) -> str:
    """One table per measure, then what the numbers are of."""
    columns = columns_of(results)
    parts = [_markdown_block(block, columns=columns) for block in blocks_of(results, columns=columns)]
    return "\n\n".join([*parts, "\n".join(_notes(results))]) + "\n"


def latex(results: Sequence[ModelResult]) -> str:
    """One ``tabular`` (booktabs) with a block of rows per measure; a document of one's own sets it."""
    columns = columns_of(results)
    lines = [f"% {note.removeprefix('- ')}" for note in _notes(results)]
    lines += [r"\begin{tabular}{l" + "c" * len(columns) + "c}", r"\toprule", *_latex_head(columns)]
    for block in blocks_of(results, columns=columns):
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 2}}}{{l}}{{\textit{{{_escaped(block.title)}}}}} \\"]
        lines += [_latex_row(row) for row in block.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _markdown_block(block: Block, *, columns: Sequence[Column]) -> str:
    head = [block.title, *(column.title for column in columns), AVERAGE]
    lines = [head, ["---", *["---:"] * (len(columns) + 1)]]
    lines += [
        [_plain(row.label), *(_markdown_cell(c, row=row) for c in (*row.cells, row.average))] for row in block.rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cell(cell: Cell | None, *, row: Row) -> str:
    if cell is None:
        return "–"
    if row.kind == "difference":
        return _signed(cell.value)
    interval = "" if cell.low is None else f" [{cell.low:.1f}, {cell.high:.1f}]"
    return f"{cell.value:.1f}{interval}"


def _latex_head(columns: Sequence[Column]) -> list[str]:
    """Groups over their benchmarks, then the benchmarks."""
    groups = [(name, len(list(members))) for name, members in groupby(columns, key=lambda column: column.group)]
    over = [rf"\multicolumn{{{size}}}{{c}}{{{_escaped(name)}}}" for name, size in groups]
    rules, start = [], 2
    for name, size in groups:
        rules += [rf"\cmidrule(lr){{{start}-{start + size - 1}}}"] if name else []
        start += size
    titles = [_escaped(column.title) for column in columns]
    head = [" & ".join(["", *over, ""]) + r" \\", " ".join(rules)] if any(name for name, _ in groups) else []
    return [*head, " & ".join(["", *titles, AVERAGE]) + r" \\"]


def _latex_row(row: Row) -> str:
    cells = [_latex_cell(cell, row=row) for cell in (*row.cells, row.average)]
    return " & ".join([_escaped(row.label), *cells]) + r" \\"


def _latex_cell(cell: Cell | None, *, row: Row) -> str:
    if cell is None:
        return "--"
    if row.kind == "difference":
        return rf"${_signed(cell.value)}$".replace("±", r"\pm ").replace("−", "-")
    interval = "" if cell.low is None else rf" {{\scriptsize[{cell.low:.1f}, {cell.high:.1f}]}}"
    return f"{cell.value:.1f}{interval}"


def _notes(results: Sequence[ModelResult]) -> list[str]:
    """What a reader must know of the numbers."""
    notes = ["- Percent; in brackets the interval of the bootstrap over questions. Differences in points."]
    if any(result.paper_row for result in results):
        notes.append(f"- Paper: {load_paper_numbers().source}.")
    for result in results:
        notes += [f"- {result.label}: {note}" for note in _missing(result)]
    return notes


def _missing(result: ModelResult) -> list[str]:
    """Benchmarks that are not whole."""
    found = []
    for score in result.scores:
        if score.num_open:
            found.append(f"{score.title} lacks {score.num_open} questions, which were not answered or judged")
        total = score.num_questions + score.num_open
        if score.num_published is not None and total != score.num_published:
            found.append(f"{score.title} asks {total} questions, published are {score.num_published}")
    return found


def _signed(value: float) -> str:
    text = f"{value:+.1f}".replace("-", "−")
    return "±0.0" if text in ("+0.0", "−0.0") else text


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escaped(text: str) -> str:
    return "".join(_LATEX_SPECIAL.get(character, character) for character in text)
