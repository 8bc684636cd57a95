"""Rates of a step, counted by hand."""

from __future__ import annotations

from nemo_axpo.algorithms.metrics import rollout_metrics
from nemo_axpo.types import ResampleScore, RolloutScore


def score(rollout_id: str, *, reward: int = 0, uses_tool: bool) -> RolloutScore:
    return RolloutScore(rollout_id[0], rollout_id, float(reward), uses_tool, confidence=0.5)


SCORES = [
    score("a/0", uses_tool=True),  # a: all-wrong subgroup of two, resampled and recovered
    score("a/1", uses_tool=True),
    score("a/2", reward=1, uses_tool=False),
    score("b/0", uses_tool=True),  # b: all-wrong, resampled, not recovered
    score("b/1", uses_tool=False),
    score("c/0", uses_tool=True),  # c: its tool works
    score("c/1", reward=1, uses_tool=True),
    score("d/0", uses_tool=False),  # d: no tool call, in no denominator of the all-wrong rate
    score("d/1", reward=1, uses_tool=False),
    score("e/0", uses_tool=True),  # e: all-wrong, left out by a short budget
]
RESAMPLES = [
    ResampleScore("a/0", "a/0/k0", 0.0),
    ResampleScore("a/0", "a/0/k1", 1.0),
    ResampleScore("a/1", "a/1/k0", 0.0),
    ResampleScore("a/1", "a/1/k1", 0.0),
    ResampleScore("b/0", "b/0/k0", 0.0),
]


def test_rates_of_a_step():
    metrics = rollout_metrics(SCORES, resamples=RESAMPLES)
    assert (metrics.accuracy, metrics.tool_use) == (3 / 10, 6 / 10)
    assert (metrics.tool_accuracy, metrics.direct_accuracy) == (1 / 6, 2 / 4)
    assert (metrics.all_wrong, metrics.all_wrong_after) == (3 / 4, 2 / 4)
    assert metrics.recovery == 1 / 2
    assert (metrics.num_rollouts, metrics.num_resamples) == (10, 5)
    assert rollout_metrics(SCORES[::-1], resamples=RESAMPLES[::-1]) == metrics


def test_without_resamples_nothing_was_recovered():
    metrics = rollout_metrics(SCORES)
    assert metrics.all_wrong == metrics.all_wrong_after == 3 / 4
    assert metrics.recovery is None


def test_empty_denominators_are_none():
    metrics = rollout_metrics([score("d/0", uses_tool=False)])
    assert (metrics.tool_use, metrics.direct_accuracy) == (0.0, 0.0)
    assert metrics.tool_accuracy is metrics.all_wrong is metrics.all_wrong_after is metrics.recovery is None
