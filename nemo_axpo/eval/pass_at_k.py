"""Pass@k of one question from n rollouts of which c are correct."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def pass_at_k(num_rollouts: int, num_correct: int, *, k: int) -> float:
    """Unbiased estimate 1 − C(n − c, k) / C(n, k): the chance that k of the n rollouts contain a correct one.

    Source: Chen et al. 2021, arXiv 2107.03374, Eq. 1. With k = n it is ``any_of``; with k = 1 the mean. Needs
    1 ≤ k ≤ n and 0 ≤ c ≤ n, ValueError otherwise.
    """
    if not (1 <= k <= num_rollouts and 0 <= num_correct <= num_rollouts):
        raise ValueError(
            f"Pass@k needs 1 <= k <= n and 0 <= c <= n, got k={k}, n={num_rollouts}, c={num_correct}: draw at least k "
            "rollouts per question"
        )
    return 1.0 - comb(num_rollouts - num_correct, k) / comb(num_rollouts, k)


def any_of(rewards: Sequence[float]) -> float:
    """1.0 if any rollout is correct: the paper's Pass@4 with four rollouts."""
    return float(any(reward > 0 for reward in rewards))
