"""The verifier protocol, verifiers by data source, and the check that they can tell right from wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from nemo_axpo.types import Question

WRONG_ANSWER = "this answer is wrong on purpose"
"""Must score 0 for every question of a run."""


class Verifier(Protocol):
    """Judges an extracted answer. Asynchronous, because judges and isolated verifiers wait for something."""

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 for a correct answer, 0.0 for a wrong one; nothing else is rewarded (ALGORITHM §2)."""


class VerifierRegistry:
    """One verifier per data source. Example: ``VerifierRegistry({"world": ExactMatch()})``."""

    def __init__(self, verifiers: Mapping[str, Verifier]) -> None:
        self._verifiers = dict(verifiers)

    async def reward(self, question: Question, answer: str | None) -> float:
        """0.0 without an answer, else what the verifier of the question's source says. ValueError: unknown source."""
        verifier = self._verifier(question.source)
        if answer is None:
            return 0.0
        reward = float(await verifier(question, answer))
        assert reward in (0.0, 1.0), f"the verifier of {question.source!r} returned {reward}, rewards are 0 or 1"
        return reward

    async def check(self, questions: Iterable[Question]) -> None:
        """Before training: every question's own answer scores 1 and a wrong one 0. Raises ValueError otherwise."""
        for question in questions:
            for answer, expected in ((question.answer, 1.0), (WRONG_ANSWER, 0.0)):
                reward = await self.reward(question, answer)
                if reward != expected:
                    raise ValueError(
                        f"the verifier of {question.source!r} gives {answer!r} the reward {reward:g} instead of "
                        f"{expected:g} for question {question.question_id!r} (reference {question.answer!r}): correct "
                        "the reference answer or choose another verifier for this source"
                    )

    def _verifier(self, source: str) -> Verifier:
        if source not in self._verifiers:
            raise ValueError(
                f"no verifier for data source {source!r}: register one, or use a source among {sorted(self._verifiers)}"
            )
        return self._verifiers[source]
