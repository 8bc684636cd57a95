"""Exact match after normalisation: for multiple choice and answers of a closed vocabulary."""

from __future__ import annotations

import unicodedata

from nemo_axpo.types import Question


class ExactMatch:
    """Verifier: the normalised answer equals the normalised reference."""

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 or 0.0; an empty answer never matches."""
        given = normalize(answer)
        return float(bool(given) and given == normalize(question.answer))


def normalize(text: str) -> str:
    """Unicode-compatible form, case-folded, whitespace collapsed, without surrounding ``$`` and one final full stop."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(folded.split()).strip("$").strip()
    return words.removesuffix(".").rstrip()
