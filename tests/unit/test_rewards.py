"""Answers are found where the format puts them, and the verifiers are checked before training."""

from __future__ import annotations

import asyncio

import pytest

from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.rewards.exact_match import ExactMatch, normalize
from nemo_axpo.rewards.extraction import extract_answer
from nemo_axpo.types import Message, Question, TextPart


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('think\n</think>\n\n<answer>\n\\boxed{"red"}\n</answer><|im_end|>', "red"),
        ("</think><answer>\\boxed{red}</answer>", "red"),
        ('</think> <answer>  \n \\boxed { " dark  red " } \n\n</answer>', "dark  red"),
        ("</think><answer>\\boxed{“red”}</answer>", "red"),
        ("</think><answer>The answer is \\boxed{7}.</answer> as said", "7"),
        ("</think><answer>\\boxed{\\frac{1}{2}}</answer>", "\\frac{1}{2}"),
        ("</think><answer>\\boxed{\\{1, 2\\}}</answer>", "\\{1, 2\\}"),
        ("</think><answer>\\boxed{a\\}b}</answer>", "a\\}b"),
        ("</think><answer>\\boxed{1}</answer><answer>\\boxed{2}</answer>", "2"),
        ("</think><answer>\\boxed{1} no, \\boxed{2}</answer>", "2"),
        ("</think><answer><answer>\\boxed{3}</answer>", "3"),
        ("<answer>\\boxed{1}</answer></think><answer>\\boxed{2}</answer>", "2"),
        ("<answer>\\boxed{1}</answer></think> done", None),  # only thought
        ("</think><answer>\\boxed{1}</answer></think>", None),  # after the LAST end of thinking
        ("</think><answer>red</answer>", None),
        ("</think><answer>\\boxed{red</answer>", None),
        ("</think><answer>\\boxed red</answer>", None),
        ('</think><answer>\\boxed{""}</answer>', None),
        ("</think><answer>\\boxed{red}", None),
        ("</think>\\boxed{red}", None),
        ("</think></answer>\\boxed{red}<answer>", None),
        ("", None),
    ],
)
def test_extract_answer(text, expected):
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("given", "reference", "same"),
    [
        ("Red", "red", True),
        ("  dark \n red ", "dark red", True),
        ("Ｂ", "b", True),
        ("$7$", "7", True),
        ("red.", "red", True),
        ("1.5", "15", False),
        ("dark red", "darkred", False),
        ("3", "30", False),
        ("", "", False),
        ("$.$", ".", False),
    ],
)
def test_exact_match(given, reference, same):
    question = Question("q", (Message("user", (TextPart("?"),)),), reference, "world")
    assert asyncio.run(ExactMatch()(question, given)) == float(same)


def test_normalize():
    assert normalize(" $ The  ANSWER. $ ") == "the answer"


def question(source="world", answer="red"):
    return Question("q1", (Message("user", (TextPart("?"),)),), answer, source)


def test_rewards_by_source():
    verifiers = VerifierRegistry({"world": ExactMatch()})
    assert asyncio.run(verifiers.reward(question(), "red")) == 1.0
    assert asyncio.run(verifiers.reward(question(), "blue")) == 0.0
    assert asyncio.run(verifiers.reward(question(), None)) == 0.0
    with pytest.raises(ValueError, match="no verifier for data source 'math'.*'world'"):
        asyncio.run(verifiers.reward(question("math"), None))


def test_a_verifier_that_cannot_tell_right_from_wrong_is_found_before_training():
    async def generous(question, answer):
        return 1.0

    async def strict(question, answer):
        return 0.0

    asyncio.run(VerifierRegistry({"world": ExactMatch()}).check([question()]))
    with pytest.raises(ValueError, match="wrong on purpose.*reward 1 instead of 0"):
        asyncio.run(VerifierRegistry({"world": generous}).check([question()]))
    with pytest.raises(ValueError, match="'red' the reward 0 instead of 1"):
        asyncio.run(VerifierRegistry({"world": strict}).check([question()]))
    with pytest.raises(ValueError, match="reference ''"):  # an empty reference can never be matched
        asyncio.run(VerifierRegistry({"world": ExactMatch()}).check([question(answer="")]))


def test_a_reward_is_zero_or_one():
    async def half(question, answer):
        return 0.5

    with pytest.raises(AssertionError, match="rewards are 0 or 1"):
        asyncio.run(VerifierRegistry({"world": half}).reward(question(), "red"))
