"""Exact match after normalisation: for answers of a closed vocabulary and for short ones with known variants."""

from __future__ import annotations

import re
import unicodedata

from nemo_axpo.rewards.known_answers import KnownAnswer
from nemo_axpo.types import Question

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_DIGITS = str.maketrans(_SUPERSCRIPTS, "0123456789")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|~")
_NUMBER = re.compile(r"[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")


class ExactMatch:
    """Verifier: the normalised answer equals the normalised reference, or one of the question's other answers."""

    known_answers = (
        KnownAnswer("red", "Red.", 1.0),
        KnownAnswer("1,000", "1000.0", 1.0),
        KnownAnswer("red", "dark red", 0.0),
    )

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 or 0.0; an empty answer never matches."""
        return float(matches(question, answer))


def matches(question: Question, answer: str) -> bool:
    """Whether the normalised answer is one of the question's; an empty one never is."""
    given = normalize(answer)
    return bool(given) and any(given == normalize(reference) for reference in question.answers)


def normalize(text: str) -> str:
    r"""The form in which answers are compared.

    Unicode-compatible (a raised 2 becomes ``^2``, not 2), case-folded, whitespace collapsed, without ``\text{…}`` around
    words, surrounding ``$`` and one final full stop; a number without thousands separators, leading and trailing zeros.
    """
    raised = _RAISED.sub(lambda match: "^" + match[0].translate(_DIGITS), text)
    folded = unicodedata.normalize("NFKC", raised).casefold()
    words = " ".join(_LATEX_SPACE.sub(" ", _WRAPPER.sub(r"\1", folded)).split()).strip("$").strip()
    return _canonical_number(words.removesuffix(".").rstrip())


def _canonical_number(text: str) -> str:
    """``+1,000.50`` → ``1000.5``; anything that is not a plain decimal number as it is."""
    if not _NUMBER.fullmatch(text):
        return text
    whole, _, fraction = text.lstrip("+-").replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if text.startswith("-") and number != "0" else number
