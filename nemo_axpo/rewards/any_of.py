"""Several verifiers for one data source: benchmarks mix multiple choice with free answers."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_axpo.rewards.base import Verifier
from nemo_axpo.types import Question


class AnyOf:
    """Verifier: right is what one of them says is right; they are asked in order, the cheap ones first."""

    def __init__(self, members: Sequence[Verifier]) -> None:
        self.members = tuple(members)

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 or 0.0. VerifierUnavailableError where one that could have said right is unavailable."""
        for verifier in self.members:
            if await verifier(question, answer):
                return 1.0
        return 0.0
