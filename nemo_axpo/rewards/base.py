"""The verifier protocol, verifiers by data source, and the check that they can tell right from wrong.

A verifier judges an answer, and what the answer does to it is the answer's fault: one that cannot be parsed, or makes the
verifier compute for ever, is wrong. What happens to the verifier otherwise (a judge that is down, a worker that dies) is
:class:`VerifierUnavailableError`: the rollout is verified again, then left out, never taken for wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemo_axpo.errors import CanaryError
from nemo_axpo.types import Question

WRONG_ANSWER = "this answer is wrong on purpose"
"""Must score 0 for every question of a run."""


class VerifierUnavailableError(RuntimeError):
    """The verifier could not judge, and not because of the answer: try again, or leave the rollout out."""


class Verifier(Protocol):
    """Judges an extracted answer. Asynchronous, because judges and isolated verifiers wait for something.

    It may have ``known_answers``, a sequence of ``rewards.known_answers.KnownAnswer`` it must score as they say before a run; ``judge``, a
    method like ``__call__`` by which these are scored, without shortcuts that would hide a verifier which is down;
    ``close()``, asynchronous, which frees what it holds; and ``members``, where it is made of other verifiers.
    """

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 for a correct answer, 0.0 for a wrong one; nothing else is rewarded (ALGORITHM §2).

        Raises VerifierUnavailableError for failures that are not the answer's.
        """


@dataclass(frozen=True)
class VerifierCheck:
    """One known answer as a verifier scored it."""

    source: str
    """Data source whose verifier was asked."""
    question_id: str
    reference: str
    answer: str
    expected: float
    reward: float
    """NaN where the verifier was unavailable."""
    problem: str = ""
    """Why it was unavailable."""

    @property
    def passed(self) -> bool:
        """Whether the answer got the reward it must get."""
        return self.reward == self.expected


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

    async def measure(self, questions: Iterable[Question]) -> tuple[VerifierCheck, ...]:
        """What every verifier says of its known answers, and of each question's own answer and a wrong one."""
        cases = [
            _Case(question.source, self._verifier(question.source), question, answer, expected)
            for question in questions
            for answer, expected in ((question.answer, 1.0), (WRONG_ANSWER, 0.0))
        ]
        parts = {part: source for source, verifier in self._verifiers.items() for part in _parts(verifier)}
        cases += [
            _Case(source, getattr(part, "judge", part), known.question, known.answer, known.reward)
            for part, source in parts.items()
            for known in getattr(part, "known_answers", ())
        ]
        return tuple([await _measure(case) for case in cases])

    async def check(self, questions: Iterable[Question]) -> None:
        """CanaryError unless every check of :meth:`measure` passes."""
        require_verifiers(await self.measure(questions))

    async def close(self) -> None:
        """Frees what the verifiers hold (processes, connections); they start again when asked again."""
        for part in {part: None for verifier in self._verifiers.values() for part in _parts(verifier)}:
            if close := getattr(part, "close", None):
                await close()

    def _verifier(self, source: str) -> Verifier:
        if source not in self._verifiers:
            raise ValueError(
                f"no verifier for data source {source!r}: register one, or use a source among {sorted(self._verifiers)}"
            )
        return self._verifiers[source]


def require_verifiers(checks: Sequence[VerifierCheck]) -> None:
    """CanaryError that names every failed check, with what to do."""
    failed = [describe_check(check) for check in checks if not check.passed]
    if failed:
        raise CanaryError("\n  ".join(["rewards must be known to be right before a run; these are not:", *failed]))


def describe_check(check: VerifierCheck) -> str:
    """A failed check in a line: what was asked, what was said, the cure."""
    if math.isnan(check.reward):
        return f"the verifier of {check.source!r} is not available: {check.problem}"
    return (
        f"the verifier of {check.source!r} gives {check.answer!r} the reward {check.reward:g} instead of "
        f"{check.expected:g} for question {check.question_id!r} (reference {check.reference!r}): correct the reference "
        "answer or choose another verifier for this source"
    )


@dataclass(frozen=True)
class _Case:
    """An answer to be scored, and by whom."""

    source: str
    judge: Verifier
    question: Question
    answer: str
    expected: float


async def _measure(case: _Case) -> VerifierCheck:
    try:
        reward, problem = float(await case.judge(case.question, case.answer)), ""
    except VerifierUnavailableError as error:
        reward, problem = math.nan, str(error)
    question = case.question
    return VerifierCheck(
        case.source, question.question_id, question.answer, case.answer, case.expected, reward, problem
    )


def _parts(verifier: Verifier) -> tuple[Verifier, ...]:
    return getattr(verifier, "members", (verifier,))
