"""Mathematical equality in worker processes; expressions that math-verify never comes back from."""

from __future__ import annotations

import asyncio

import pytest
from verifier_cases import make_question

from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.rewards.math_equality import MathEquality
from nemo_axpo.rewards.workers.pool import CallLimits


@pytest.fixture(name="verifier", scope="module")
def verifier_fixture():
    verifier = MathEquality(num_workers=1, limits=CallLimits(cpu_s=1.0))
    yield verifier
    asyncio.run(verifier.close())


def reward(verifier, reference, answer, *, other=()):
    return asyncio.run(verifier(make_question(reference, other=other), answer))


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("\\frac{1}{2}", "0.5", 1.0),
        ("\\frac12", "1/2", 1.0),
        ("$\\sqrt{8}$", "2\\sqrt{2}", 1.0),
        ("1,234", "1234", 1.0),
        ("1024", "2**10", 1.0),
        ("50\\%", "0.5", 1.0),
        ("x=5", "5", 1.0),
        ("\\{1,2\\}", "\\{2,1\\}", 1.0),
        ("30^\\circ", "30°", 1.0),
        ("4\\sqrt{2}", "4√2", 1.0),
        ("x^2", "x²", 1.0),
        ("1.5", "1½", 1.0),
        ("5.5", "1½", 0.0),
        ("1000", "1\\,000", 1.0),
        ("(1,2)", "[1,2]", 0.0),
        ("1/3", "0.33", 0.0),
        ("-3", "3", 0.0),
        ("5", "5 or 6", 0.0),
        ("5", "1,2,3,4,5", 0.0),
        ("5", "", 0.0),
        ("5", "5" * 2001, 0.0),
    ],
)
def test_answers(verifier, reference, answer, expected):
    assert reward(verifier, reference, answer) == expected


def test_other_answers_count(verifier):
    assert reward(verifier, "7", "0.25", other=("1/4",)) == 1.0
    assert reward(verifier, "7", "0.3", other=("1/4",)) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9**9",
        "10^{10^{10^{10}}}",
        "1000000!!!",
        "(" * 900 + "1" + ")" * 900,
        "\\sum_{n=1}^{10^9} \\frac{1}{n}",
        "\\int_0^1 x^{x^{x}} dx",
        "\\frac{" * 150 + "1" + "}{2}" * 150,
        "\\boxed{" * 200,
        "$" * 1000,
    ],
)
def test_pathological_answers_are_wrong_and_the_next_one_is_judged(verifier, answer):
    assert reward(verifier, "12", answer) == 0.0
    assert reward(verifier, "\\frac{3}{4}", "0.75") == 1.0


def test_its_known_answers_and_the_questions_own(verifier):
    registry = VerifierRegistry({"geometry": verifier})
    checks = asyncio.run(registry.measure([make_question("\\sqrt{2}", source="geometry")]))
    assert all(check.passed for check in checks)
    assert len(checks) == 2 + len(MathEquality.known_answers)
