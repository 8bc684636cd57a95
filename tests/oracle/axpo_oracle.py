"""AXPO a second time, by brute force and from the paper's text alone: every token of every row, one at a time.

Nothing of the package is imported. Rows are raw tokens; whether a tool was called, where, and how confidently is found
by scanning them. Means are exact fractions. Selection is stated as an order on all candidates, not as a walk over
layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Token:
    """One token of a row; ``probability`` is the one it was sampled with, None for prompt and observation tokens."""

    token_id: int
    probability: float | None


@dataclass(frozen=True)
class Row:
    """An ordinary rollout, or a continuation where ``source_id`` is set; then ``num_shared`` tokens are the prefix."""

    row_id: str
    question_id: str
    tokens: tuple[Token, ...]
    is_correct: bool
    is_lost: bool = False
    source_id: str | None = None
    num_shared: int = 0


@dataclass(frozen=True)
class Setting:
    """B, N, K, r (a decimal string) and the three special tokens."""

    b: int
    n: int
    k: int
    r: str
    think_end: int
    tool_call: int
    tool_call_end: int


def opening(row: Row, setting: Setting) -> int | None:
    """Index of the first sampled ``<tool_call>`` that follows a ``</think>`` of the same turn."""
    thought = False
    for t, token in enumerate(row.tokens):
        if token.probability is None:
            thought = False
        elif token.token_id == setting.think_end:
            thought = True
        elif token.token_id == setting.tool_call and thought:
            return t
    return None


def confidence(row: Row, setting: Setting) -> Fraction:
    """Exact mean probability of the first call's tokens through ``</tool_call>``, or to the turn's end if unclosed."""
    probabilities = []
    for token in row.tokens[opening(row, setting) + 1 :]:
        if token.probability is None:
            break
        probabilities.append(Fraction(token.probability))
        if token.token_id == setting.tool_call_end:
            break
    return sum(probabilities) / len(probabilities) if probabilities else Fraction(1)


def advantage(own: int, rewards: list[int]) -> float:
    """``(own - mean) / (std + 1e-6)`` with ddof = 1, and 0 for std = 0."""
    center = Fraction(sum(rewards), len(rewards))
    squares = sum((reward - center) ** 2 for reward in rewards)
    return float(own - center) / (math.sqrt(squares / (len(rewards) - 1)) + 1e-6) if squares else 0.0


def select(rows: list[Row], setting: Setting) -> list[str]:
    """Selected source ids: all candidates ordered by (rank inside the question, confidence, id), cut at the budget."""
    alive = [row for row in rows if not row.is_lost]
    candidates = []
    for row in alive:
        subgroup = [o for o in alive if o.question_id == row.question_id and opening(o, setting) is not None]
        if row in subgroup and not any(other.is_correct for other in subgroup):
            keys = [(confidence(other, setting), other.row_id) for other in subgroup]
            own = (confidence(row, setting), row.row_id)
            candidates.append((sum(key < own for key in keys), *own))
    affordable = int(Fraction(setting.r) * setting.b * setting.n / setting.k)
    return [candidate[-1] for candidate in sorted(candidates)[:affordable]]


def token_advantages(rows: list[Row], continuations: list[Row], setting: Setting) -> dict[tuple[str, int], float]:
    """``{(row id, token index): advantage}`` of every token that is trained; a token that is absent is masked."""
    assigned: dict[tuple[str, int], float] = {}
    alive = [row for row in rows if not row.is_lost]
    arrived = [row for row in continuations if not row.is_lost]
    for row in [*alive, *arrived]:
        for t, token in enumerate(row.tokens):
            if token.probability is not None:
                value = one_token(row, t, alive, arrived, setting)
                if value is not None:
                    assert (row.row_id, t) not in assigned
                    assigned[row.row_id, t] = value
    return assigned


def one_token(row: Row, t: int, alive: list[Row], arrived: list[Row], setting: Setting) -> float | None:
    """Advantage of one sampled token; None where it is masked."""
    if row.source_id is not None:
        siblings = [int(o.is_correct) for o in arrived if o.source_id == row.source_id]
        return None if t < row.num_shared else advantage(int(row.is_correct), siblings)
    group = [other for other in alive if other.question_id == row.question_id]
    resampled = [int(o.is_correct) for o in arrived if o.source_id == row.row_id]
    if not resampled:
        return advantage(int(row.is_correct), [int(other.is_correct) for other in group])
    if t > opening(row, setting):
        return None
    r_prefix = max(resampled)
    return advantage(r_prefix, [r_prefix if other is row else int(other.is_correct) for other in group])
