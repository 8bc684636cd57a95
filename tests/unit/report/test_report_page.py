"""The page and the whole command: self-contained, harmless, and made from whatever a run has left."""

import base64
import hashlib
import re
from dataclasses import asdict, replace

import pytest
from matplotlib import pyplot as plt
from PIL import Image
from synthetic_runs import TreeMaker, write_run, write_study

from nemo_axpo.report.command import build_report
from nemo_axpo.report.runs import find_runs
from nemo_axpo.report.showcase import recorded_trees, showcase, spread_over
from nemo_axpo.report.tree_picture import shade, shorten, tree_figure
from nemo_axpo.report.tree_view import first_box, group_outcome, signed, tree_view, zoomed_boxes

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> $\\frac{ \u2028 "


def with_text(tree, text):
    def rewrite(row):
        segments = tuple(replace(s, text=text + s.text) if s.kind == "model" else s for s in row.segments)
        return replace(row, segments=segments, answer=text)

    return replace(
        tree,
        question=text,
        answer=text,
        rollouts=tuple(rewrite(row) for row in tree.rollouts),
        resamples=tuple(rewrite(row) for row in tree.resamples),
    )


def test_what_a_model_wrote_is_text_and_nothing_else(tmp_path):
    run = write_run(tmp_path / "run", num_steps=3)
    maker = TreeMaker(run)
    maker.run.write_groups(2, [asdict(with_text(maker.tree(step=2), EVIL))])
    page = build_report([run]).html.read_text()
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert page.count("<script") == 1


def test_a_name_of_a_directory_is_text_too(tmp_path):
    for name in ("<b>one", "two & <i>"):
        write_run(tmp_path / name, num_steps=3)
    page = build_report([tmp_path]).html.read_text()
    assert (
        "<b>one" not in page and "&lt;b&gt;one" in page and "<i>" not in page.split("<body>")[1].split("<section>")[0]
    )


def test_the_page_asks_for_nothing_outside_itself(tmp_path):
    page = build_report([write_study(tmp_path, num_steps=12)]).html.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:|["']?#)[a-z/]""", page)
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)", page) and "@import" not in page
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page


def test_a_study_gets_every_part(tmp_path):
    report = build_report([write_study(tmp_path, seeds=(10, 11), num_steps=12)], output=tmp_path / "out")
    assert [path.name for path in report.pictures] == ["curves.png", "comparison.png", "sweep.png", "tree.png"]
    for path in report.pictures:
        assert Image.open(path).width == 1600
    page = report.html.read_text()
    assert page.count("<article") == 6 and page.count("<option") == 6 and page.count("hidden>") == 5
    assert "Where training started" in page and "20% – direct accuracy" in page
    assert "Every seed" in page and "AXPO, seed 11" in page
    assert "advantage +1.62" in page and "frozen prefix" in page and "masked, no loss" in page
    assert page.count("<svg") == 2


def test_an_interrupted_run_gets_its_report(tmp_path):
    run = write_run(tmp_path / "run", num_steps=3, planned_steps=100)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rollout/tool_')
    page = build_report([run]).html.read_text()
    assert "Not finished: run at step 3 of 100" in page and "No rollouts were recorded (yet)." in page
    # The window belongs to the embedded world; this run has no warm start beside it.
    assert "20% – direct accuracy" not in page


def test_a_run_before_its_first_step_gets_one_too(tmp_path):
    run = write_run(tmp_path / "run", num_steps=0, planned_steps=100)
    assert "before training" in build_report([run]).html.read_text()


def test_an_empty_directory_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="train first, or name another directory"):
        build_report([tmp_path])
    assert not list(tmp_path.iterdir())


def test_a_lost_image_leaves_a_note(tmp_path):
    run = write_run(tmp_path / "run", num_steps=3, tree_steps=(2,))
    for path in (run / "images").iterdir():
        path.unlink()
    report = build_report([run])
    assert "was not kept" in report.html.read_text()


# ------------------------------------------------------------------------------------------------------------ trees
def test_boxes_are_those_of_the_calls(tree_maker):
    tree = tree_maker.tree(step=1, outcomes="dDdtdddd", resampled="KKkk")
    boxes = zoomed_boxes(tree)
    right = [box for box in boxes if box.is_correct]
    assert [box.label for box in right] == ["k0 k1"]
    assert [box.label for box in boxes if not box.is_continuation] == ["#3"]
    row = next(row for row in tree.resamples if row.is_correct)
    x1, y1, x2, _ = first_box(row)
    assert (right[0].left, right[0].top, right[0].width) == (x1 / 1000, y1 / 1000, (x2 - x1) / 1000)


@pytest.mark.parametrize(
    "call",
    [
        "no json", "[1, 2]", '{"arguments": [1]}', '{"arguments": {"bbox_2d": [1, 2, 3]}}',
        '{"arguments": {"bbox_2d": [500, 0, 100, 100]}}', '{"arguments": {"bbox_2d": ["a", 0, 1, 1]}}',
        '{"arguments": {"bbox_2d": [0, 0, 9, 9], "img_idx": 1}}',
    ],
)  # fmt: skip
def test_a_call_without_a_usable_box_has_none(tree_maker, call):
    row = tree_maker.tree(step=1).resamples[0]
    segments = tuple(
        replace(s, text=f"<tool_call>{call}</tool_call>" if s.kind == "model" else "") for s in row.segments
    )
    assert first_box(replace(row, segments=segments)) is None


def test_words_of_a_group(tree_maker):
    tree = tree_maker.tree(step=1, outcomes="dDdtdddd", resampled="Kkkk")
    assert group_outcome(tree) == (
        "1 of 8 rollouts is right; 1 calls the tool, all wrong: resampled from the opening of the call. "
        "1 of 4 continuations is right."
    )
    ordinary = tree_maker.tree(step=2, outcomes="dDdTtddd")
    assert (
        group_outcome(ordinary)
        == "2 of 8 rollouts are right; 2 call the tool, not all of these wrong: an ordinary group."
    )
    assert group_outcome(tree_maker.tree(step=3, outcomes="dddddddd")).endswith(
        "none call the tool: nothing to resample."
    )


def test_the_view_of_a_long_prefix_shows_its_end_in_each_continuation(tree_maker):
    tree = tree_maker.tree(step=1)
    long = "thought " * 200
    resample = tree.resamples[0]
    segments = tuple(replace(s, text=long + s.text) if s.frozen else s for s in resample.segments)
    view = tree_view(
        replace(tree, resamples=(replace(resample, segments=segments),)),
        run_dir=tree_maker.run.path,
        run="run",
        tree_id="t",
    )
    row = next(row for row in view.rows if row.continuations)
    frozen = "".join(piece.text for piece in row.continuations[0].spans[0].pieces)
    assert frozen.startswith("… ") and "characters as in the source" in frozen and len(frozen) < 300
    assert frozen.endswith("<tool_call>")


def test_signed_numbers():
    assert [signed(value) for value in (1.6202, -0.3536, 0.0, 0.001, None)] == ["+1.62", "−0.35", "0", "0", ""]


def test_the_picture_draws_any_tree(tree_maker):
    trees = [
        tree_maker.tree(step=1, outcomes="dDdtddtdDdDtdddd", resampled="KkKkkkkK"),
        with_text(tree_maker.tree(step=2), EVIL),
        replace(tree_maker.tree(step=3, algorithm="grpo"), images=()),
    ]
    for tree in trees:
        figure = tree_figure(tree, run_dir=tree_maker.run.path)
        figure.canvas.draw()
        plt.close(figure)


def test_shades_and_cut_texts():
    assert shade(0.0) == shade(None)
    assert shade(2.0)[2] > shade(2.0)[0] and shade(-2.0)[0] > shade(-2.0)[2]
    assert shorten("a long answer", width=0.5, size=10) == "a lo…" and shorten("red", width=0.5, size=10) == "red"


def test_the_report_opens_with_the_most_telling_tree(tmp_path):
    run = write_run(tmp_path / "run", num_steps=3)
    maker = TreeMaker(run)
    for step, resampled in ((1, "kkkk"), (2, "KkKk"), (3, "KkkK")):
        maker.run.write_groups(step, [asdict(maker.tree(step=step, resampled=resampled))])
    trees = recorded_trees(find_runs([run]), max_trees=3)
    assert showcase(trees).tree.step == 2


def test_trees_are_spread_over_the_steps():
    assert spread_over(list(range(10)), count=4) == [0, 3, 6, 9]
    assert spread_over([1, 2], count=4) == [1, 2] and spread_over([1, 2, 3], count=1) == [3]
