"""Rows of the paper's table: one's own result, the paper's printed one, and the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_axpo.eval.benchmarks.results import ModelResult
from nemo_axpo.eval.benchmarks.scores import BenchmarkScore
from nemo_axpo.eval.bootstrap import Estimate
from nemo_axpo.eval.paper_numbers import PaperNumbers, Rows, load_paper_numbers


@dataclass(frozen=True)
class Column:
    """One benchmark of the table."""

    name: str
    title: str
    group: str
    paper_name: str | None


@dataclass(frozen=True)
class Cell:
    """One number in percent, or in points for a difference."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One line; a cell is None where there is no number."""

    label: str
    kind: str
    """``own``, ``paper`` or ``difference``."""
    cells: tuple[Cell | None, ...]
    average: Cell | None


@dataclass(frozen=True)
class Block:
    """One measure of all models. Example: title ``Pass@1``."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Measure:
    """What a block shows."""

    title: str
    own: str
    """Field of ``BenchmarkScore``."""
    average: str
    """Attribute of ``ModelResult``."""
    paper: str
    """Field of ``PaperNumbers``."""


def columns_of(results: Sequence[ModelResult]) -> tuple[Column, ...]:
    """Benchmarks of all results: the paper's in its order, then others as they come."""
    found = {
        score.name: Column(score.name, score.title, score.group, score.paper_name)
        for result in results
        for score in result.scores
    }
    order = load_paper_numbers().benchmarks

    def place(column: Column) -> int:
        return order.index(column.paper_name) if column.paper_name in order else len(order)

    return tuple(sorted(found.values(), key=place))


def blocks_of(results: Sequence[ModelResult], *, columns: Sequence[Column]) -> tuple[Block, ...]:
    """Pass@1, Pass@k and tool use; every own row is followed by the paper's and the difference, where it is compared.

    Tool use is shown of rollouts and of questions: the paper does not say of which it is, so there is no difference.
    """
    paper = load_paper_numbers()
    blocks = [
        Block(
            measure.title,
            tuple(row for result in results for row in _rows(result, measure, columns=columns, paper=paper)),
        )
        for measure in _measures(results)
    ]
    tool_rows = tuple(row for result in results for row in _tool_rows(result, columns=columns, paper=paper))
    return (*blocks, Block("Tool use", tool_rows))


def _measures(results: Sequence[ModelResult]) -> tuple[Measure, ...]:
    ks = sorted({score.k for result in results for score in result.scores})
    title = f"Pass@{ks[0]}" if len(ks) == 1 else "Pass@k"
    return (
        Measure("Pass@1", "pass_at_1", "average_pass_at_1", "pass_at_1"),
        Measure(title, "pass_at_k", "average_pass_at_k", "pass_at_4"),
    )


def _rows(result: ModelResult, measure: Measure, *, columns: Sequence[Column], paper: PaperNumbers) -> list[Row]:
    scores = {score.name: score for score in result.scores}
    own = Row(
        result.label,
        "own",
        tuple(_own_cell(scores.get(column.name), measure) for column in columns),
        _cell(getattr(result, measure.average)),
    )
    printed_rows: Rows = getattr(paper, measure.paper)
    if result.paper_row not in printed_rows:
        return [own]
    is_any_of_four = measure.paper != "pass_at_4" or all(score.k == 4 for score in result.scores)
    if not is_any_of_four:
        return [own]
    printed = _printed(printed_rows[result.paper_row], label=result.paper_row, columns=columns, scores=scores)
    return [own, printed, _difference(own, printed)] if any(printed.cells) else [own]


def _tool_rows(result: ModelResult, *, columns: Sequence[Column], paper: PaperNumbers) -> list[Row]:
    """Rollouts with a call, questions with such a rollout, and what the paper prints."""
    scores = {score.name: score for score in result.scores}
    found = [scores.get(column.name) for column in columns]
    of_rollouts = tuple(score and _cell(score.tool_use) for score in found)
    of_questions = tuple(score and Cell(100 * score.questions_with_tool) for score in found)
    rows = [
        Row(f"{result.label}: rollouts", "own", of_rollouts, _mean(of_rollouts)),
        Row(f"{result.label}: questions", "own", of_questions, _mean(of_questions)),
    ]
    if result.paper_row in paper.tool_use:
        printed = _printed(paper.tool_use[result.paper_row], label=result.paper_row, columns=columns, scores=scores)
        rows += [printed] if any(printed.cells) else []
    return rows


def _mean(cells: Sequence[Cell | None]) -> Cell | None:
    values = [cell.value for cell in cells if cell is not None]
    return Cell(sum(values) / len(values)) if values else None


def _own_cell(score: BenchmarkScore | None, measure: Measure) -> Cell | None:
    return None if score is None else _cell(getattr(score, measure.own))


def _cell(value: Estimate | float | None) -> Cell | None:
    if value is None:
        return None
    if not isinstance(value, Estimate):
        return Cell(100 * value)
    has_interval = value.low is not None and value.high is not None
    return Cell(100 * value.value, *((100 * value.low, 100 * value.high) if has_interval else ()))


def _printed(
    row: Mapping[str, float], *, label: str, columns: Sequence[Column], scores: Mapping[str, BenchmarkScore]
) -> Row:
    """The average is over the benchmarks that the own row has, or it could not be compared."""
    cells = tuple(Cell(row[column.paper_name]) if column.paper_name in row else None for column in columns)
    shared = [cell.value for cell, column in zip(cells, columns, strict=True) if cell and column.name in scores]
    is_comparable = len(shared) == len(scores) and shared
    return Row(f"{label} (paper)", "paper", cells, Cell(sum(shared) / len(shared)) if is_comparable else None)


def _difference(own: Row, printed: Row) -> Row:
    cells = tuple(_minus(one, other) for one, other in zip(own.cells, printed.cells, strict=True))
    return Row("difference", "difference", cells, _minus(own.average, printed.average))


def _minus(one: Cell | None, other: Cell | None) -> Cell | None:
    return None if one is None or other is None else Cell(one.value - other.value)
