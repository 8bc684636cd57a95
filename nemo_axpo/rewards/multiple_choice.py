"""Multiple choice: the letter of an option, however it is written, or the option's own words."""

from __future__ import annotations

import re
import string

from nemo_axpo.rewards.exact_match import matches, normalize
from nemo_axpo.rewards.known_answers import KnownAnswer
from nemo_axpo.types import Question, TextPart

_OPTION = re.compile(r"(?:^|\n)[ \t]*[(\[]?([A-Z])[)\].:、][ \t]*(\S[^\n]*)")
_LETTER = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?[(\[{]?([a-z])[)\]}]?[.:]?")
_LETTER_AND_WORDS = re.compile(r"[(\[{]?([a-z])(?:[)\]}]\s*[.:]?|\s*[.:])\s*(\S.*)")
_SEPARATORS = re.compile(r"\s*(?:,|;|/|&|\band\b)\s*")
_ASKED = "Which colour has a lemon?\n(A) blue\n(B) yellow\n(C) dark red"


class MultipleChoice:
    """Verifier: the answer names the same option, or the same set of options, as the reference, or reads exactly as it.

    Options are lines of the question that begin with ``A.``, ``(A)``, ``A:`` …, from A on. Where they are known, a letter
    that is followed by another option's words is wrong.
    """

    known_answers = (
        KnownAnswer("B", "(b)", 1.0, _ASKED),
        KnownAnswer("B", "Yellow", 1.0, _ASKED),
        KnownAnswer("B", "C", 0.0, _ASKED),
        KnownAnswer("A, C", "C and A", 1.0, _ASKED),
        KnownAnswer("A, C", "A", 0.0, _ASKED),
    )

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 or 0.0."""
        if matches(question, answer):
            return 1.0
        options = options_of(question)
        given = chosen(answer, options=options)
        return float(bool(given) and any(given == chosen(reference, options=options) for reference in question.answers))


def options_of(question: Question) -> dict[str, str]:
    """Normalised words of every option by lower-case letter; empty where the question lists none, or one alone."""
    text = "\n".join(part.text for message in question.messages for part in message.parts if isinstance(part, TextPart))
    found: dict[str, str] = {}
    for match in _OPTION.finditer(text):
        is_next = match[1] == string.ascii_uppercase[len(found) % 26]  # no other line is taken for an option
        if is_next:
            found[match[1].lower()] = normalize(match[2])
    return found if len(found) > 1 else {}


def chosen(text: str, *, options: dict[str, str]) -> frozenset[str]:
    """Lower-case letters of the options that ``text`` names; empty where it names none, or says more than that."""
    plain = normalize(text)
    if single := _one(plain, options=options):
        return frozenset(single)
    letters = [_LETTER.fullmatch(part) for part in _SEPARATORS.split(plain) if part]
    return frozenset(match[1] for match in letters) if letters and all(letters) else frozenset()


def _one(plain: str, *, options: dict[str, str]) -> str:
    """The letter of one option, empty where ``plain`` is something else."""
    if (match := _LETTER.fullmatch(plain)) and (not options or match[1] in options):
        return match[1]  # before the words, which may be letters too: (A) D, (B) A
    named = [letter for letter, words in options.items() if words == plain]
    if len(named) == 1:
        return named[0]
    match = _LETTER_AND_WORDS.fullmatch(plain)
    if match and (not options or options.get(match[1]) == normalize(match[2])):
        return match[1]
    return ""
