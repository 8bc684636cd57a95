"""A row is cut where its treatment changes, and the cuts are those of the trainer."""

from dataclasses import asdict

import numpy as np
import pytest

from nemo_axpo.report.recorder import record_trees
from nemo_axpo.report.tree_records import IMAGE_MARK, choose_groups, read_trees
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.types import Question, Rollout, RolloutGroup, RolloutStatus


def shape(row):
    return [(s.kind, s.frozen, s.trained, s.advantage and round(s.advantage, 4)) for s in row.segments]


def test_selected_source_trains_its_prefix_alone(tree_maker):
    tree = tree_maker.tree(step=1, outcomes="dDdtdddd", resampled="KkKk")
    source = tree.rollouts[3]
    assert source.selected and tree.triggered
    # c = 1 correct direct rollout, the prefix recovered: the golden value of Eq. 4.
    assert shape(source) == [
        ("prompt", False, False, None),
        ("model", False, True, 1.6202),
        ("model", False, False, None),
        ("observation", False, False, None),
        ("model", False, False, None),
    ]
    assert source.segments[1].text.endswith("<tool_call>")
    assert source.advantage == pytest.approx(1.6202, abs=1e-4)


def test_continuation_freezes_the_prefix_and_trains_the_rest(tree_maker):
    tree = tree_maker.tree(step=1, outcomes="dDdtdddd", resampled="KkKk")
    prefix = tree.rollouts[3].segments[1]
    for row, advantage in zip(tree.resamples, (0.866, -0.866, 0.866, -0.866), strict=True):
        assert shape(row) == [
            ("prompt", False, False, None),
            ("model", True, False, None),
            ("model", False, True, advantage),
            ("observation", False, False, None),
            ("model", False, True, advantage),
        ]
        assert (row.segments[1].text, row.segments[1].num_tokens) == (prefix.text, prefix.num_tokens)
        assert row.source_rollout_id == tree.rollouts[3].rollout_id and not row.selected


def test_ordinary_rows_train_every_model_token(tree_maker):
    tree = tree_maker.tree(step=1, algorithm="grpo", outcomes="dDdtdddd")
    assert not tree.resamples and not any(row.selected for row in tree.rollouts)
    for row in tree.rollouts:
        assert {s.trained for s in row.segments if s.kind == "model"} == {True}
        assert {s.trained for s in row.segments if s.kind != "model"} == {False}
        assert {s.advantage for s in row.segments if s.trained} == {row.advantage}


def test_an_image_is_one_mark_in_the_text_and_all_its_tokens_in_the_count(tree_maker):
    prompt = tree_maker.tree(step=1).rollouts[0].segments[0]
    assert prompt.text.count(IMAGE_MARK) == len(prompt.images) == 1
    assert prompt.num_tokens > 24


def test_a_row_without_a_sample_is_shown_as_not_trained(tree_maker):
    from nemo_axpo.report.tree_records import tree_record
    from nemo_axpo.types import ResamplePlan

    group = tree_maker.group("lone", "dD")
    tree = tree_record(group, step=1, plan=ResamplePlan(), continuations=(), samples=(), decode=tree_maker.words.decode)
    assert [row.advantage for row in tree.rollouts] == [None, None]


def test_records_survive_the_file(tree_maker):
    trees = (tree_maker.tree(step=7), tree_maker.tree(step=7, algorithm="grpo"))
    tree_maker.run.write_groups(7, [asdict(tree) for tree in trees])
    assert read_trees(tree_maker.run.rollouts_path(7)) == trees


def test_line_separators_of_unicode_do_not_cut_a_record(tree_maker):
    tree = tree_maker.tree(step=7)
    changed = asdict(tree) | {"question": "one\u2028two\u0085three"}
    tree_maker.run.write_groups(7, [changed])
    assert read_trees(tree_maker.run.rollouts_path(7))[0].question == "one\u2028two\u0085three"


def test_a_line_that_is_no_tree_names_file_and_line(tmp_path):
    path = tmp_path / "step_00001.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"step_00001.jsonl, line 1 is not .*delete the file"):
        read_trees(path)


def test_recovered_groups_are_recorded_first():
    def rollout(name, reward=0.0):
        return Rollout(name, name.split("/")[0], (), RolloutStatus.ANSWERED, reward=reward)

    groups = [RolloutGroup(Question(name, (), "red", "world"), ()) for name in ("plain", "failed", "recovered")]
    continuations = [rollout("failed/0/k0"), rollout("recovered/0/k0"), rollout("recovered/0/k1", reward=1.0)]
    chosen = choose_groups(groups, continuations=continuations, max_groups=2)
    assert [group.question.question_id for group in chosen] == ["recovered", "failed"]


def test_recording_writes_each_image_and_what_the_model_sees(tmp_path, tree_maker):
    from PIL import Image

    from nemo_axpo.report.model_view import view_id

    class Store:
        def image(self, image_id):
            return Image.new("RGB", (8, 8), (255, 0, 0))

        def features(self, image_id):
            class Features:
                pixel_values_PD, grid_thw = np.full((4, 3 * 2 * 2 * 2), 0.5, np.float32), (1, 2, 2)

            return Features

    class Processor:
        merge_size, patch_size, image_mean, image_std = 2, 2, [0.5] * 3, [0.5] * 3

    run, tree = RunDirectory(tmp_path / "other"), tree_maker.tree(step=3)
    run.path.mkdir()
    record_trees(run, [tree], step=3, image_store=Store(), image_processor=Processor)
    assert read_trees(run.rollouts_path(3)) == (tree,)
    for image_id in tree.all_images:
        assert Image.open(run.image_path(image_id)).size == (8, 8)
        assert Image.open(run.image_path(view_id(image_id))).getpixel((0, 0)) == (191, 191, 191)
