"""The window from which the gap can show: its bounds, what lies outside, and the setting that moves it."""

from __future__ import annotations

import pytest

from nemo_axpo.world.window import WarmStartWindow

INSIDE = {"tool_use": 0.28, "direct_accuracy": 0.29, "tool_accuracy": 0.25, "all_wrong": 0.5}


def test_inside_nothing_is_missed():
    window = WarmStartWindow()
    assert window.misses(INSIDE) == []
    assert window.checks(INSIDE) == {
        "tool_use": True,
        "direct_accuracy": True,
        "all_wrong": True,
        "tool_accuracy": True,
    }


@pytest.mark.parametrize(
    ("name", "low", "high"), [("tool_use", 0.25, 0.30), ("direct_accuracy", 0.25, 0.32), ("tool_accuracy", 0.20, 0.29)]
)
def test_bounds_belong_to_the_window(name, low, high):
    window = WarmStartWindow()
    rates = INSIDE | ({"tool_accuracy": 0.25} if name == "direct_accuracy" else {})
    for value, expected in ((low, True), (high, True), (low - 0.001, False), (high + 0.001, False)):
        assert window.checks(rates | {name: value})[name] is expected


def test_the_tool_may_be_as_good_as_the_direct_way_but_not_better():
    window = WarmStartWindow()
    assert window.checks(INSIDE | {"direct_accuracy": 0.26, "tool_accuracy": 0.26})["tool_accuracy"]
    assert not window.checks(INSIDE | {"direct_accuracy": 0.26, "tool_accuracy": 0.27})["tool_accuracy"]


def test_a_miss_says_rate_window_and_cure():
    (miss,) = WarmStartWindow().misses(INSIDE | {"tool_use": 0.4123})
    assert miss.startswith("tool_use is 0.412, the window is 0.250 to 0.300: world.tool_rate")
    (miss,) = WarmStartWindow().misses(INSIDE | {"tool_accuracy": 0.1})
    assert miss.startswith("tool_accuracy is 0.100, the window is 0.200 to 0.290: world.aim_rate")


def test_every_rate_has_a_cure():
    far = dict.fromkeys(INSIDE, 0.99) | {"tool_accuracy": 0.0}
    assert sorted(miss.split()[0] for miss in WarmStartWindow().misses(far)) == sorted(INSIDE)


def test_what_was_not_measured_is_not_judged():
    window = WarmStartWindow()
    assert window.checks({"tool_use": 0.1, "direct_accuracy": None, "tool_accuracy": 0.9}) == {"tool_use": False}
    assert len(window.misses({"tool_use": 0.1, "direct_accuracy": None})) == 1


def all_wrong_rate(tool_use, tool_accuracy, *, num_rollouts=8):
    """For independent rollouts: P(no tool-using one is right, some use the tool) / P(some use the tool)."""
    none = (1 - tool_use) ** num_rollouts
    return ((1 - tool_use * tool_accuracy) ** num_rollouts - none) / (1 - none)


def test_the_bounds_imply_the_all_wrong_rate_the_docstring_names():
    window = WarmStartWindow()
    corners = [
        all_wrong_rate(q, p) for q in window.tool_use for p in (window.min_tool_accuracy, window.direct_accuracy[1])
    ]
    assert (round(min(corners), 2), round(max(corners), 2)) == (0.41, 0.63)
