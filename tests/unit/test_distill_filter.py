"""Which questions are kept: by hand, and the pages that tell it."""

from __future__ import annotations

from nemo_axpo.distill.attempts import Attempt
from nemo_axpo.distill.filter import KEPT, SOLVED, UNSOLVABLE, decide, markdown
from nemo_axpo.distill.report import histogram, summarize_attempts


def attempt(name, num_correct, *, source="world", num_tool=0):
    rewards = tuple(float(i < num_correct) for i in range(4))
    return Attempt(0, name, source, rewards, tuple(i < num_tool for i in range(4)))


POLICY = [
    attempt("a", 4),
    attempt("b", 0),
    attempt("c", 0),
    attempt("d", 3, source="sums"),
    attempt("e", 4),
    attempt("f", 0),
]
TEACHER = [attempt("a", 4), attempt("b", 0), attempt("c", 1), attempt("d", 0), attempt("e", 0)]


def test_solved_always_or_never_by_the_teacher_is_dropped():
    report = decide(POLICY, teacher=TEACHER)
    expected = {"a": SOLVED, "b": UNSOLVABLE, "c": KEPT, "d": UNSOLVABLE, "e": SOLVED, "f": KEPT}
    assert report.fates == expected and report.kept == ["c", "f"]
    assert report.counts == {KEPT: 2, SOLVED: 2, UNSOLVABLE: 2}
    assert report.sources == {"sums": {UNSOLVABLE: 1}, "world": {SOLVED: 2, UNSOLVABLE: 1, KEPT: 2}}
    assert report.by_teacher == {"0": {0: 1, 3: 1, 4: 1}, "1": {0: 1}, "4": {4: 1}, "unknown": {0: 1}}


def test_without_a_teacher_only_the_solved_are_dropped():
    assert decide(POLICY).kept == ["b", "c", "d", "f"]


def test_the_summary_by_hand():
    summary = summarize_attempts([attempt("a", 2, num_tool=1), attempt("b", 0, num_tool=2)])
    # Rollouts of a: right with tool, right, wrong, wrong; of b: wrong with tool twice, wrong twice.
    assert (summary.num_questions, summary.num_rollouts, summary.accuracy, summary.tool_use) == (2, 8, 2 / 8, 3 / 8)
    assert (summary.tool_accuracy, summary.direct_accuracy) == (1 / 3, 1 / 5)
    assert summary.solved == {0: 1, 1: 0, 2: 1, 3: 0, 4: 0}
    assert summarize_attempts([]).accuracy is None


def test_the_histogram_scales_to_its_longest_bar():
    assert [line.count("█") for line in histogram({0: 10, 1: 0, 2: 5}, width=20)] == [20, 0, 10]
    assert histogram({0: 0, 1: 3})[1].split() == ["1/1", "█" * 40, "3"]


def test_the_page_holds_counts_and_both_histograms():
    page = markdown(decide(POLICY, teacher=TEACHER))
    assert "| source | kept | solved by the policy | failed by the teacher |" in page
    assert "| sums | 0 | 0 | 1 |" in page and "| all | 2 | 2 | 2 |" in page
    assert (
        "| teacher | 0 | 1 | 2 | 3 | 4 |" in page and "| 0 | 1 | 0 | 0 | 1 | 1 |" in page and "| unknown | 1 |" in page
    )
