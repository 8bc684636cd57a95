"""The paper's numbers: complete, consistent with the means the paper prints, and read-only."""

from __future__ import annotations

import pytest

from nemo_axpo.eval.paper_numbers import AVERAGE, ScoreTable, load_paper_numbers

NUMBERS = load_paper_numbers()
STAGES = ("Base", "GRPO", "SFT", "SFT+GRPO", "SFT+AXPO")
ROWS = [*(f"{size} {stage}" for size in ("2B", "4B", "8B") for stage in STAGES), "32B Base"]
FOUR = ("MathVision", "VStar", "VisualProbe-hard", "HR-MMSearch")


def check_means(rows, *, benchmarks):
    """A printed mean is that of the printed values, up to the rounding of both."""
    for name, row in rows.items():
        assert tuple(row) == (*benchmarks, AVERAGE), name
        assert row[AVERAGE] == pytest.approx(sum(row[b] for b in benchmarks) / len(benchmarks), abs=0.1), name
        assert all(0 <= value <= 100 for value in row.values())


@pytest.mark.parametrize("table", ["pass_at_1", "pass_at_4", "tool_use"])
def test_the_main_tables_have_every_row_and_their_means(table):
    rows = getattr(NUMBERS, table)
    assert list(rows) == ROWS
    check_means(rows, benchmarks=NUMBERS.benchmarks)


@pytest.mark.parametrize(("table", "num_rows"), [(NUMBERS.ablations, 6), (NUMBERS.alternatives, 8)])
def test_the_tables_on_four_benchmarks(table, num_rows):
    assert len(table.pass_at_1) == num_rows and list(table.pass_at_1) == list(table.pass_at_4)
    check_means(table.pass_at_1, benchmarks=FOUR)
    check_means(table.pass_at_4, benchmarks=FOUR)


@pytest.mark.parametrize("metric", ["pass_at_1", "pass_at_4"])
def test_tables_agree_where_they_print_the_same_run(metric):
    main, row = getattr(NUMBERS, metric), "8B SFT+AXPO"
    for table in (NUMBERS.ablations, NUMBERS.alternatives):
        assert all(getattr(table, metric)["AXPO"][b] == main[row][b] for b in FOUR)
    assert all(getattr(NUMBERS.alternatives, metric)["GRPO"][b] == main["8B SFT+GRPO"][b] for b in FOUR)
    unseen = getattr(NUMBERS.unseen_tool, metric)
    assert unseen["SFT+AXPO"]["MMSearch"] == main[row]["MMSearch"]


def test_pass_at_4_is_never_below_pass_at_1():
    tables = [ScoreTable(NUMBERS.pass_at_1, NUMBERS.pass_at_4), NUMBERS.ablations, NUMBERS.alternatives,
              NUMBERS.non_agent, NUMBERS.unseen_tool]  # fmt: skip
    for table in tables:
        for name, row in table.pass_at_1.items():
            assert all(row[benchmark] <= table.pass_at_4[name][benchmark] for benchmark in row)


def test_values_the_paper_names_in_its_text():
    assert (NUMBERS.pass_at_1["8B SFT+AXPO"][AVERAGE], NUMBERS.pass_at_4["8B SFT+AXPO"][AVERAGE]) == (62.3, 75.8)
    assert NUMBERS.pass_at_4["8B SFT+AXPO"][AVERAGE] > NUMBERS.pass_at_4["32B Base"][AVERAGE] == 75.1
    assert (NUMBERS.tool_use["8B SFT"][AVERAGE], NUMBERS.tool_use["8B SFT+AXPO"][AVERAGE]) == (69.0, 82.9)


def test_groups_are_the_nine_and_nothing_can_be_changed():
    assert tuple(name for group in NUMBERS.groups.values() for name in group) == NUMBERS.benchmarks
    assert len(NUMBERS.benchmarks) == 9 and "2605.28774" in NUMBERS.source
    with pytest.raises(TypeError):
        NUMBERS.pass_at_1["8B SFT"]["MathVision"] = 100.0
    assert load_paper_numbers() is NUMBERS


SIZES = {
    "MathVision": 304, "DynaMath": 501, "VStar": 191, "VisualProbe-hard": 106, "HR-Bench-4K": 200, "HR-Bench-8K": 200,
    "HR-MMSearch": 305, "MMSearch": 300,
}  # fmt: skip


def whole_questions(rows):
    """Printed values that are a whole number of questions, and all of them."""
    values = [(row[name], size) for row in rows.values() for name, size in SIZES.items()]
    return sum(round(100 * round(value * size / 100) / size, 1) == value for value, size in values), len(values)


def test_printed_tool_use_is_of_questions_as_pass_at_4_is():
    """What docs/evaluation.md says of it; Pass@1, a mean over four rollouts, is mostly in between."""
    assert whole_questions(NUMBERS.tool_use) == whole_questions(NUMBERS.pass_at_4) == (128, 128)
    assert whole_questions(NUMBERS.pass_at_1) == (43, 128)
