"""Equality of decimal numbers up to a tolerance, as benchmarks with rounded references ask for."""

from __future__ import annotations

import math

from nemo_axpo.errors import rule_message
from nemo_axpo.rewards.exact_match import normalize
from nemo_axpo.rewards.known_answers import KnownAnswer
from nemo_axpo.types import Question


class NumberEquality:
    """Verifier: answer and reference are decimal numbers that differ by no more than ``tolerance``.

    Source of the default: DynaMath (arXiv 2411.00836), whose references have three decimals.
    """

    known_answers = (
        KnownAnswer("0.333", "0.3333", 1.0),
        KnownAnswer("1,000", "1000.0", 1.0),
        KnownAnswer("0.333", "0.34", 0.0),
        KnownAnswer("12", "twelve", 0.0),
    )

    def __init__(self, *, tolerance: float = 1e-3) -> None:
        """``tolerance``: absolute, 0 or more."""
        if tolerance < 0:
            raise ValueError(rule_message("the tolerance of numbers must be 0 or more", got=tolerance, cure="raise it"))
        self._tolerance = tolerance * (1 + 1e-9)  # 0.334 - 0.333 is a little more than 0.001 in binary

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 or 0.0."""
        given = _number(answer)
        wanted = [_number(reference) for reference in question.answers]
        return float(any(abs(given - number) <= self._tolerance for number in wanted))


def _number(text: str) -> float:
    """Not-a-number, which equals nothing, where ``text`` is no decimal number."""
    try:
        number = float(normalize(text))
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
