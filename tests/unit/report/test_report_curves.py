"""Curves: hand-computed smoothing, bands and label places; every picture draws from whatever there is."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic_runs import START, write_run, write_study

from nemo_axpo.report.comparison import comparison_figure
from nemo_axpo.report.curves import (
    CURVE_PANELS,
    HEALTH_PANELS,
    band_of,
    curves_figure,
    panels_with_data,
    smooth,
    spread,
)
from nemo_axpo.report.palette import arm_colours
from nemo_axpo.report.runs import arms_of, find_runs
from nemo_axpo.report.sweep import AXPO_ONLY, BOTH, NOBODY, sweep_figure, sweep_points


def test_smoothing_is_a_centred_mean_over_steps_not_points():
    np.testing.assert_allclose(smooth([1, 2, 3, 4], [0, 3, 6, 9], width=2), [1.5, 3, 6, 7.5])
    np.testing.assert_allclose(smooth([1, 2, 9], [0, 2, 8], width=2), [1, 1, 8])
    np.testing.assert_allclose(smooth([5], [0.3], width=0), [0.3])


def test_band_is_median_and_range_and_fills_a_seeds_gaps_by_interpolation():
    band = band_of([([0, 2], [0.0, 1.0]), ([0, 1, 2], [1.0, 0.7, 1.0]), ([0, 1], [0.4, 0.4])])
    np.testing.assert_array_equal(band.steps_S, [0, 1, 2])
    np.testing.assert_allclose(band.median_S, [0.4, 0.5, 1.0])
    np.testing.assert_allclose(band.low_S, [0.0, 0.4, 1.0])
    np.testing.assert_allclose(band.high_S, [1.0, 0.7, 1.0])


def test_labels_are_moved_apart_and_stay_inside():
    assert spread([0.5, 0.9], min_gap=0.1, low=0, high=1) == [0.5, 0.9]
    assert spread([0.0, 0.0], min_gap=0.1, low=0, high=1) == pytest.approx([0.0, 0.1])
    assert spread([1.0, 1.0, 0.2], min_gap=0.1, low=0, high=1) == pytest.approx([0.9, 1.0, 0.2])


def texts(figure):
    return {text.get_text() for axis in figure.axes for text in axis.texts}


def test_every_arm_is_named_at_its_line(tmp_path):
    arms = arms_of(find_runs([write_study(tmp_path, num_steps=12)]))
    figure = curves_figure(arms, title="a finding")
    for axis in figure.axes:
        assert {text.get_text() for text in axis.texts} == {"AXPO", "GRPO N=8", "GRPO N=10"}
    plt.close(figure)


def test_panels_without_data_say_so_or_are_left_out(tmp_path):
    run = write_run(tmp_path / "run", num_steps=3, planned_steps=60)
    (run / "evaluation.json").unlink()
    runs = find_runs([run])
    figure = curves_figure(arms_of(runs), title="")
    assert "not measured yet" in texts(figure)
    plt.close(figure)
    assert [panel.title for panel in panels_with_data(CURVE_PANELS, runs=runs)] == [
        "Tool use", "Accuracy (Pass@1)", "All-wrong rate of tool-using rollouts",
    ]  # fmt: skip
    assert len(panels_with_data(HEALTH_PANELS, runs=runs)) == 7


def test_an_algorithm_keeps_its_colour(tmp_path):
    arms = arms_of(find_runs([write_study(tmp_path, num_steps=3)]))
    assert arm_colours(arms) == {"GRPO N=8": "#d55e00", "GRPO N=10": "#e69f00", "AXPO": "#0072b2"}
    assert arm_colours(arms[2:]) == {"AXPO": "#0072b2"}


def test_every_seed_has_its_dots(tmp_path):
    arms = arms_of(find_runs([write_study(tmp_path, seeds=(10, 11), num_steps=3)]))
    figure = comparison_figure(arms, title="a finding")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["seed 10", "seed 11"]
    plt.close(figure)


def test_the_sweep_tells_who_learned_from_where(tmp_path):
    for name, direct, axpo, grpo in (("a", 0.29, 1.0, 0.0), ("b", 0.15, 1.0, 0.9), ("c", 0.65, 0.0, 0.0)):
        start = START | {"direct_accuracy": direct}
        write_run(tmp_path / name / "axpo", num_steps=2, start=start, final=START | {"tool_use": axpo})
        write_run(
            tmp_path / name / "grpo", algorithm="grpo", num_steps=2, start=start, final=START | {"tool_use": grpo}
        )
    points = sweep_points(find_runs([tmp_path]))
    assert [(point.direct_accuracy, point.winner) for point in points] == [
        (0.29, AXPO_ONLY),
        (0.15, BOTH),
        (0.65, NOBODY),
    ]
    figure = sweep_figure(points)
    assert figure.axes[0].get_xlim()[1] >= 0.65
    plt.close(figure)
