"""Confidence intervals by the percentile bootstrap over questions.

Rollouts of one question are not independent, so whole questions are drawn again: an interval tells how much a score hangs
on which questions a benchmark happens to ask. Source: Efron & Tibshirani 1993, §13.3; computed by ``scipy.stats.bootstrap``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_QUESTIONS = 2
"""Of every benchmark; one question says nothing of others."""


@dataclass(frozen=True)
class BootstrapSettings:
    """How intervals are computed."""

    level: float = 0.95
    """Share of intervals that hold the true value, in (0, 1)."""
    num_resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval. Example: ``Estimate(0.561, 0.517, 0.604)``."""

    value: float
    low: float | None = None
    """None where there are too few questions for an interval."""
    high: float | None = None


def mean_estimate(values: Sequence[float], *, settings: BootstrapSettings) -> Estimate | None:
    """Mean over questions, ``values`` one each; None without questions."""
    return average_estimate([values], settings=settings) if values else None


def average_estimate(groups: Sequence[Sequence[float]], *, settings: BootstrapSettings) -> Estimate | None:
    """Plain mean of the means of several benchmarks, each drawn again by itself; None without questions in one of them."""
    if not groups or not all(groups):
        return None
    samples = [np.asarray(group, dtype=float) for group in groups]
    value = float(np.mean([sample.mean() for sample in samples]))
    if min(map(len, samples)) < MIN_QUESTIONS:
        return Estimate(value)
    interval = stats.bootstrap(
        samples,
        _mean_of_means,
        n_resamples=settings.num_resamples,
        batch=_batch(samples),
        confidence_level=settings.level,
        method="percentile",
        rng=np.random.default_rng(settings.seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    return sum(sample.mean(axis=axis) for sample in samples) / len(samples)


def _batch(samples: Sequence[np.ndarray]) -> int:
    """Resamples at a time: at most a few million numbers in memory."""
    return max(1, 2_000_000 // sum(map(len, samples)))
