"""Answers whose reward is known beforehand: what a verifier must say of them before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.types import Message, Question, TextPart


@dataclass(frozen=True)
class KnownAnswer:
    r"""One case. Example: ``KnownAnswer("\\frac{1}{2}", "0.5", 1.0)``."""

    reference: str
    answer: str
    reward: float
    """1.0 or 0.0."""
    asked: str = "?"
    """Text of the question."""

    @property
    def question(self) -> Question:
        """The question that goes with it."""
        return Question("known answer", (Message("user", (TextPart(self.asked),)),), self.reference, "known answers")
