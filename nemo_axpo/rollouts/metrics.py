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


@dataclass(frozen=True)
class RowCosts:
    """Cost of one rollout, as ranks tell each other."""

    tokens: int
    """Tokens the engine sampled for it."""
    turns: int
    """Model segments."""
    truncated: bool
    """Whether a limit ended it."""


def row_costs(rollout: Rollout) -> RowCosts:
    """Cost of an ordinary rollout or a continuation."""
    return RowCosts(num_sampled_tokens(rollout), len(rollout.turns), rollout.status in _TRUNCATED)


def mean_costs(rows: Sequence[RowCosts]) -> RolloutCost:
    """Means over ordinary rollouts, continuations, or both."""
    if not rows:
        return RolloutCost(tokens=None, turns=None, truncated=None)
    return RolloutCost(
        tokens=sum(row.tokens for row in rows) / len(rows),
        turns=sum(row.turns for row in rows) / len(rows),
        truncated=sum(row.truncated for row in rows) / len(rows),
    )


def num_sampled_tokens(rollout: Rollout) -> int:
    """Tokens the engine sampled for this rollout."""
    num_frozen = len(rollout.prefix.completion.token_ids) if rollout.prefix else 0
    return sum(len(turn.completion.token_ids) for turn in rollout.turns) - num_frozen
