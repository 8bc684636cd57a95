"""Scores computed by hand, tables and figures of them."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import stdev

import pytest

from nemo_axpo.errors import RunDirectoryError
from nemo_axpo.eval.benchmarks.definition import Benchmark, load_benchmarks
from nemo_axpo.eval.benchmarks.figure import own_average, paper_lines, shared_paper_names, size_figure, size_of
from nemo_axpo.eval.benchmarks.outputs import write_tables
from nemo_axpo.eval.benchmarks.records import AnsweredQuestion, AnsweredRollout
from nemo_axpo.eval.benchmarks.results import ModelResult, read_result, write_result
from nemo_axpo.eval.benchmarks.scores import averages, score
from nemo_axpo.eval.benchmarks.tables import latex, markdown
from nemo_axpo.eval.bootstrap import BootstrapSettings, Estimate
from nemo_axpo.eval.paper_numbers import load_paper_numbers

SETTINGS = BootstrapSettings(num_resamples=500)
BENCHMARK = Benchmark(name="doors", reader="schema", verifiers=("exact_match",), measures=("exact_match", "token_f1"))


def rollout(number, answer, reward, *tools, status="answered", tokens=10):
    return AnsweredRollout(number, answer, reward, tools, 1 + len(tools), tokens, status)


def question(id, *rollouts, kind="", answers=("red",)):
    return AnsweredQuestion(id, kind, answers, rollouts)


TWO = (
    question("a", rollout(0, "red", 1.0, "zoom", "zoom"), rollout(1, "dark red", 0.0, "python"), kind="x"),
    question("b", rollout(0, "blue", 0.0), rollout(1, None, 0.0, "", status="turn_limit", tokens=30), kind="y"),
)


def test_every_number_of_two_questions():
    found = score(BENCHMARK, TWO, num_asked=3, k=2, settings=SETTINGS)
    assert (found.pass_at_1.value, found.pass_at_k.value) == (0.25, 0.5)
    assert (found.num_questions, found.num_open) == (2, 1)
    assert found.std == pytest.approx(stdev([0.5, 0.0]))  # the evaluations of rollouts 0 and of rollouts 1
    assert (found.tool_use.value, found.questions_with_tool) == (0.75, 1.0)
    assert (found.tool_accuracy, found.direct_accuracy) == (pytest.approx(1 / 3), 0.0)
    assert (found.truncated, found.tokens, found.turns) == (0.25, 15.0, (3 + 2 + 1 + 2) / 4)
    assert found.calls == {"malformed": 0.25, "python": 0.25, "zoom": 0.5}
    assert found.measures["exact_match"] == 0.25
    assert found.measures["token_f1"] == pytest.approx((1 + 2 / 3) / 4)  # "dark red": 2·1/(2+1)
    assert {kind: (one.num_questions, one.pass_at_1, one.pass_at_k) for kind, one in found.kinds.items()} == {
        "x": (1, 0.5, 1.0), "y": (1, 0.0, 0.0),
    }  # fmt: skip


def test_questions_that_are_open_do_not_count():
    unjudged = question("c", rollout(0, "red", None), rollout(1, "red", 1.0))
    short = question("d", rollout(1, "red", 1.0))
    found = score(BENCHMARK, (*TWO, unjudged, short), num_asked=4, k=2, settings=SETTINGS)
    assert (found.num_questions, found.num_open, found.pass_at_1.value) == (2, 2, 0.25)
    assert score(BENCHMARK, (unjudged, short), num_asked=2, k=2, settings=SETTINGS) is None


def test_one_rollout_has_no_spread_and_no_tool_no_accuracy():
    found = score(BENCHMARK, [question("a", rollout(0, "red", 1.0))], num_asked=1, k=1, settings=SETTINGS)
    assert found.std is None and found.tool_accuracy is None and found.pass_at_1 == Estimate(1.0)


def test_averages_weigh_benchmarks_alike():
    one, two = averages([TWO, [question("e", rollout(0, "red", 1.0), rollout(1, "red", 1.0))]], settings=SETTINGS)
    assert (one.value, two.value) == ((0.25 + 1.0) / 2, (0.5 + 1.0) / 2)
    assert averages([], settings=SETTINGS) == (None, None)


# ------------------------------------------------------------------------------------------------------------ tables
def result(label="8B SFT+AXPO", *, names=("mathvision", "vstar"), paper_row="8B SFT+AXPO", **changes):
    """A model with a Pass@1 of 25%, a Pass@4 of 50% and a tool use of 75% everywhere."""
    found = score(BENCHMARK, TWO, num_asked=2, k=2, settings=SETTINGS)
    scores = tuple(
        replace(found, name=one.name, title=one.shown_title, group=one.group, paper_name=one.paper_name, k=4,
                num_published=one.num_questions,
                pass_at_1=Estimate(0.25, 0.2, 0.3))
        for one in load_benchmarks(list(names))
    )  # fmt: skip
    whole = ModelResult(label, "out/hf", 8_770_000_000, {}, scores, Estimate(0.25, 0.2, 0.3), Estimate(0.5), paper_row)
    return replace(whole, **changes)


def test_a_result_reads_back_as_it_was_written(tmp_path):
    written = result()
    path = write_result(written, tmp_path)
    again = read_result(tmp_path)
    assert again == read_result(path)
    assert again.scores[0].pass_at_1 == Estimate(0.25, 0.2, 0.3) and again.label == written.label
    assert json.loads(json.dumps(again.scores[0].calls)) == {"malformed": 0.25, "python": 0.25, "zoom": 0.5}


@pytest.mark.parametrize("text", [None, "{", "{}", '{"label": "x"}', "[]"])
def test_a_result_that_is_missing_or_broken(tmp_path, text):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"must hold the results.json of an evaluation.*goes on where it was"):
        read_result(tmp_path)


def test_markdown_sets_the_paper_s_numbers_and_the_difference_beside_one_s_own():
    lines = markdown([result()]).splitlines()
    assert lines[0] == "| Pass@1 | MathVision | V* | Average |"
    assert lines[2:5] == [
        "| 8B SFT+AXPO | 25.0 [20.0, 30.0] | 25.0 [20.0, 30.0] | 25.0 [20.0, 30.0] |",
        "| 8B SFT+AXPO (paper) | 56.1 | 87.8 | 72.0 |",  # (56.1 + 87.8) / 2: of these two, not of the nine
        "| difference | −31.1 | −62.8 | −47.0 |",
    ]
    assert lines[6] == "| Pass@4 | MathVision | V* | Average |"
    tool_use = lines.index("| Tool use | MathVision | V* | Average |")
    assert lines[tool_use + 2 : tool_use + 6] == [
        "| 8B SFT+AXPO: rollouts | 75.0 [50.0, 100.0] | 75.0 [50.0, 100.0] | 75.0 |",
        "| 8B SFT+AXPO: questions | 100.0 | 100.0 | 100.0 |",
        "| 8B SFT+AXPO (paper) | 75.7 | 99.0 | 87.3 |",
        "",
    ]
    assert any("V* asks 2 questions, published are 191" in line for line in lines)
    assert any("arXiv 2605.28774" in line for line in lines)


def test_a_model_the_paper_does_not_have_stands_alone():
    text = markdown([result("mine", paper_row=None)])
    assert "(paper)" not in text and "difference" not in text.lower().split("- percent")[0]


def test_columns_follow_the_paper_and_own_benchmarks_come_last(tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\ntitle: My_own\npath: x.jsonl\nreader: schema\nverifiers: [math]\n")
    text = markdown([result(names=(str(tmp_path / "own.yaml"), "mmsearch", "dynamath"))])
    assert text.splitlines()[0] == "| Pass@1 | DynaMath | MMSearch | My_own | Average |"
    assert "| 8B SFT+AXPO (paper) | 79.0 | 45.0 | – | – |" in text  # no mean over what the paper does not have


def test_open_questions_are_told():
    whole = result()
    one = replace(whole, scores=(replace(whole.scores[0], num_open=7),))
    assert "8B SFT+AXPO: MathVision lacks 7 questions, which were not answered or judged" in markdown([one])


def test_latex():
    lines = latex([result("a_b & c", paper_row="8B SFT")]).splitlines()
    assert r"\begin{tabular}{lccc}" in lines
    head = lines.index(r"\toprule")
    assert lines[head + 1 : head + 4] == [
        r" & \multicolumn{1}{c}{Reasoning} & \multicolumn{1}{c}{Perception} &  \\",
        r"\cmidrule(lr){2-2} \cmidrule(lr){3-3}",
        r" & MathVision & V* & Average \\",
    ]
    assert r"a\_b \& c & 25.0 {\scriptsize[20.0, 30.0]} & 25.0 {\scriptsize[20.0, 30.0]} & 25.0 {\scriptsize[20.0, 30.0]} \\" in lines  # fmt: skip
    assert r"difference & $-25.9$ & $-59.8$ & $-42.8$ \\" in lines
    assert all(line.startswith("%") for line in lines[: lines.index(r"\begin{tabular}{lccc}")])


def test_groups_span_their_benchmarks():
    text = latex([result(names=("all",))])
    assert r"\multicolumn{3}{c}{Reasoning} & \multicolumn{4}{c}{Perception} & \multicolumn{2}{c}{Search}" in text
    assert r"\cmidrule(lr){2-4} \cmidrule(lr){5-8} \cmidrule(lr){9-10}" in text


def test_the_whole_nine_have_the_paper_s_own_average():
    text = markdown([result(names=("all",))])
    (line,) = [line for line in text.splitlines() if line.startswith("| 8B SFT+AXPO (paper) | 56.1")]
    assert line.endswith("| 62.3 |")


# ------------------------------------------------------------------------------------------------------------ figure
def test_sizes_of_models():
    assert size_of(result("4B SFT")) == 4.0
    assert size_of(result("mine")) == 8.77
    assert size_of(result("mine", num_parameters=None)) is None


def test_the_paper_s_lines_are_means_over_shared_benchmarks():
    one, other = result(names=("vstar", "mathvision")), result(names=("vstar", "mmsearch"))
    assert shared_paper_names([one, other]) == ("VStar",)
    lines = paper_lines(load_paper_numbers().pass_at_1, names=("VStar",))
    assert lines["SFT+AXPO"] == [(2.0, 81.3), (4.0, 88.9), (8.0, 87.8)]
    assert [size for size, _ in lines["Base"]] == [2.0, 4.0, 8.0, 32.0]
    assert own_average(one, "pass_at_1", names=("VStar",)) == Estimate(0.25)
    assert own_average(one, "pass_at_1", names=("VStar", "MathVision")) == one.average_pass_at_1


def test_the_figure_shows_own_points_beside_the_lines(tmp_path):
    figure = size_figure([result()])
    for axis, title in zip(figure.axes, ("Pass@1", "Pass@4"), strict=True):
        assert axis.get_title(loc="left") == title
        labels = axis.get_legend_handles_labels()[1]
        assert {"8B SFT+AXPO", "SFT+AXPO (paper)", "Base (paper)"} <= set(labels)
    (container,) = figure.axes[0].containers
    assert list(container.lines[0].get_ydata()) == [25.0]
    paths = write_tables([result()], tmp_path / "out")
    assert [path.name for path in paths] == ["table.md", "table.tex", "sizes.png"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_without_shared_benchmarks_the_figure_has_no_line_of_the_paper():
    own = replace(result().scores[0], paper_name=None)
    figure = size_figure([result(scores=(own,))])
    assert figure.axes[0].get_legend_handles_labels()[1] == ["8B SFT+AXPO"]
