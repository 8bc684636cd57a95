"""Intervals against distributions that can be written down."""

from __future__ import annotations

import math

import pytest

from nemo_axpo.eval.bootstrap import BootstrapSettings, Estimate, average_estimate, mean_estimate

SETTINGS = BootstrapSettings(num_resamples=4000, seed=1)


def test_two_questions():
    """Means of two draws from {0, 1} are 0, 1/2, 1 with chances 1/4, 1/2, 1/4: 95% reach from 0 to 1, 40% stay at 1/2."""
    assert mean_estimate([0.0, 1.0], settings=SETTINGS) == Estimate(0.5, 0.0, 1.0)
    narrow = BootstrapSettings(level=0.4, num_resamples=4000)
    assert mean_estimate([0.0, 1.0], settings=narrow) == Estimate(0.5, 0.5, 0.5)


def test_many_questions_give_the_normal_interval():
    found = mean_estimate([1.0] * 60 + [0.0] * 140, settings=SETTINGS)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 200)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == (pytest.approx(0.3 - half, abs=0.01), pytest.approx(0.3 + half, abs=0.01))


def test_equal_values_have_an_interval_of_no_width():
    assert mean_estimate([0.25] * 5, settings=SETTINGS) == Estimate(0.25, 0.25, 0.25)


def test_too_few_questions():
    assert mean_estimate([], settings=SETTINGS) is None
    assert mean_estimate([1.0], settings=SETTINGS) == Estimate(1.0)


def test_an_average_weighs_benchmarks_and_not_questions():
    """Variance of the mean of two independent means: (0.25/100 + 0.25/400) / 4."""
    groups = [[0.0, 1.0] * 50, [0.0, 1.0] * 200]
    found = average_estimate(groups, settings=SETTINGS)
    half = 1.96 * math.sqrt((0.25 / 100 + 0.25 / 400) / 4)
    assert found.value == 0.5 and found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert average_estimate([[1.0] * 9, [0.0]], settings=SETTINGS) == Estimate(0.5)
    assert average_estimate([[1.0], []], settings=SETTINGS) is None


def test_the_seed_decides():
    values = [0.0, 0.25, 0.5, 1.0, 1.0, 0.75, 0.0]
    assert mean_estimate(values, settings=SETTINGS) == mean_estimate(values, settings=SETTINGS)
