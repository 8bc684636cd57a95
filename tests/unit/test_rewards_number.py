"""Numbers up to a tolerance."""

from __future__ import annotations

import asyncio

import pytest
from verifier_cases import make_question

from nemo_axpo.rewards.number import NumberEquality


@pytest.mark.parametrize(
    ("reference", "answer", "reward"),
    [
        ("0.333", "0.334", 1.0),  # the tolerance itself
        ("0.333", "0.3341", 0.0),
        ("0.333", "1/3", 0.0),  # no decimal number: the verifier ``math`` reads it
        ("-2", "−2", 0.0),
        ("-2", "-2.0005", 1.0),
        ("1,250", "1250", 1.0),
        ("$3.5$", "3.5.", 1.0),
        ("3", "nan", 0.0),
        ("nan", "nan", 0.0),
        ("inf", "inf", 0.0),
        ("3", "", 0.0),
        ("B", "3", 0.0),
    ],
)
def test_number(reference, answer, reward):
    assert asyncio.run(NumberEquality()(make_question(reference), answer)) == reward


def test_other_answers_and_the_tolerance():
    question = make_question("1", other=("2",))
    assert asyncio.run(NumberEquality(tolerance=0)(question, "2.0")) == 1.0
    assert asyncio.run(NumberEquality(tolerance=0)(question, "2.0001")) == 0.0
    assert asyncio.run(NumberEquality(tolerance=0.5)(question, "2.5")) == 1.0
    with pytest.raises(ValueError, match="tolerance of numbers"):
        NumberEquality(tolerance=-1)


def test_known_answers():
    for known in NumberEquality.known_answers:
        assert asyncio.run(NumberEquality()(known.question, known.answer)) == known.reward
