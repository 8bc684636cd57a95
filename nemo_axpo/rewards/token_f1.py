"""Token F1, the measure of short free answers in search benchmarks.

    precision = common ÷ answer tokens      recall = common ÷ reference tokens      F1 = 2 · precision · recall ÷ their sum

``common`` counts a token as often as both have it. Example: reference "the blue whale", answer "blue whale shark": tokens
``blue whale`` and ``blue whale shark``, common 2, precision 2/3, recall 1, F1 = 0.8. Source: Rajpurkar et al. 2016, arXiv
1606.05250, §4.3, articles and punctuation left out as there.
"""

from __future__ import annotations

from collections import Counter

from nemo_axpo.data.words import words_of
from nemo_axpo.errors import rule_message
from nemo_axpo.rewards.exact_match import matches
from nemo_axpo.rewards.known_answers import KnownAnswer
from nemo_axpo.types import Question

_ARTICLES = frozenset({"a", "an", "the"})


class TokenF1:
    """Verifier: the best F1 with the question's answers reaches a threshold, since a reward is 0 or 1."""

    known_answers = (
        KnownAnswer("the blue whale", "Blue whale!", 1.0),
        KnownAnswer("the blue whale", "a grey seal", 0.0),
    )

    def __init__(self, *, threshold: float = 0.5) -> None:
        """``threshold``: in (0, 1]; 1 asks for the same tokens in any order."""
        if not 0 < threshold <= 1:
            rule = "the threshold of token F1 must be above 0 and at most 1"
            raise ValueError(rule_message(rule, got=threshold, cure="use 0.5, or 1 for the same tokens"))
        self._threshold = threshold

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 or 0.0; what reads exactly as a reference is right, also where it is an article or a sign alone."""
        if matches(question, answer):
            return 1.0
        return float(max(token_f1(answer, reference) for reference in question.answers) >= self._threshold)


def token_f1(answer: str, reference: str) -> float:
    """F1 in [0, 1]; 0 where either has no token."""
    given, wanted = Counter(tokens(answer)), Counter(tokens(reference))
    common = (given & wanted).total()
    if not common:
        return 0.0
    return 2 * common / (given.total() + wanted.total())  # = 2PR / (P + R)


def tokens(text: str) -> list[str]:
    """Words without articles."""
    return [word for word in words_of(text) if word not in _ARTICLES]
