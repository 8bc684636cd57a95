"""What rollouts cost and how they ended; what they achieved is ``algorithms.metrics``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_axpo.types import Rollout, RolloutStatus

_TRUNCATED = (RolloutStatus.TURN_LIMIT, RolloutStatus.TOKEN_LIMIT, RolloutStatus.TIME_LIMIT)


@dataclass(frozen=True, kw_only=True)
class RolloutCost:
    """Means over rollouts; None without rollouts."""

    tokens: float | None
    """Model tokens per rollout; a continuation's frozen prefix does not count, it was sampled once."""
    turns: float | None
    """Model segments per rollout."""
    truncated: float | None
    """Rollouts that a limit ended before they answered ÷ rollouts."""


def rollout_cost(rollouts: Sequence[Rollout]) -> RolloutCost:
    """Cost of ordinary rollouts, continuations, or both."""
    if not rollouts:
        return RolloutCost(tokens=None, turns=None, truncated=None)
    return RolloutCost(
        tokens=sum(num_sampled_tokens(rollout) for rollout in rollouts) / len(rollouts),
        turns=sum(len(rollout.turns) for rollout in rollouts) / len(rollouts),
        truncated=sum(rollout.status in _TRUNCATED for rollout in rollouts) / len(rollouts),
    )


def num_sampled_tokens(rollout: Rollout) -> int:
    """Tokens the engine sampled for this rollout."""
    num_frozen = len(rollout.prefix.completion.token_ids) if rollout.prefix else 0
    return sum(len(turn.completion.token_ids) for turn in rollout.turns) - num_frozen
