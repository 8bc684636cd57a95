"""Answers are found where the format puts them, and the verifiers are checked before training."""

from __future__ import annotations

import asyncio

import pytest
from verifier_cases import make_question

from nemo_axpo.errors import CanaryError
from nemo_axpo.rewards.base import VerifierRegistry, VerifierUnavailableError
from nemo_axpo.rewards.exact_match import ExactMatch, normalize
from nemo_axpo.rewards.extraction import extract_answer
from nemo_axpo.rewards.multiple_choice import MultipleChoice, options_of
from nemo_axpo.rewards.token_f1 import TokenF1, token_f1
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
    ("box", "expected"),
    [
        ("\\boxed{``red''}", "red"),
        ("\\boxed{'red'}", "red"),
        ("\\boxed{‘red’}", "red"),
        ("\\boxed{'}", "'"),
        ("\\fbox{red}", "red"),
        ("\\boxed{x = \\boxed{3}}", "3"),
        ("\\boxed{1} \\boxedness{2}", "1"),
        ("\\boxed\n {red}", "red"),
    ],
)
def test_boxes_and_quotes(box, expected):
    assert extract_answer(f"</think><answer>{box}</answer>") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so \\boxed{1}, no \\boxed{2}.", "2"),
        ("<think>\\boxed{1}</think> it is 2", None),
        ("</think><answer>\\boxed{1}</answer> \\boxed{2}", "1"),  # a block is there: it counts
        ("</think><answer>red</answer> \\boxed{2}", None),
    ],
)
def test_a_box_without_a_block_counts_only_when_asked_for(text, expected):
    assert extract_answer(text, needs_block=False) == expected
    if "<answer>" not in text:
        assert extract_answer(text) is None


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
        ("\\text{Dark} \\mathrm{red}", "dark red", True),
        ("1,000", "1000", True),
        ("1,00", "100", False),
        ("+07.50", "7.5", True),
        ("-0.0", "0", True),
        ("-7", "7", False),
        (".5", "0.50", True),
        ("-.5", "-0.5", True),
        (".", "0", False),
        ("5²", "52", False),
        ("5²", "5^2", True),
    ],
)
def test_exact_match(given, reference, same):
    question = Question("q", (Message("user", (TextPart("?"),)),), reference, "world")
    assert asyncio.run(ExactMatch()(question, given)) == float(same)


def test_normalize():
    assert normalize(" $ The  ANSWER. $ ") == "the answer"


@pytest.mark.parametrize(
    ("given", "reference", "expected"),
    [
        ("blue whale shark", "the blue whale", 0.8),  # 2 common of 3 and 2: P 2/3, R 1
        ("The Blue Whale.", "blue whale", 1.0),
        ("a b b c", "b b b", 4 / 6),  # b twice of 3 (without the article a) and 3: P 2/3, R 2/3
        ("42", "42.0", 0.0),
        ("3,5", "3,5", 1.0),
        ("東京都", "東京", 0.8),  # characters: 2 common of 3 and 2
        ("the", "the", 0.0),  # nothing is left
        ("", "x", 0.0),
    ],
)
def test_token_f1(given, reference, expected):
    assert token_f1(given, reference) == pytest.approx(expected)


def test_the_threshold_makes_a_reward_of_token_f1():
    question = make_question("the blue whale", other=("Balaenoptera musculus",))
    assert asyncio.run(TokenF1()(question, "blue shark")) == 1.0  # 1 common of 2 and 2: exactly 0.5
    assert asyncio.run(TokenF1(threshold=0.9)(question, "blue whale shark")) == 0.0
    assert asyncio.run(TokenF1(threshold=1.0)(question, "musculus balaenoptera")) == 1.0
    assert asyncio.run(TokenF1()(make_question("A"), "a.")) == asyncio.run(TokenF1()(make_question("+"), "+")) == 1.0
    assert asyncio.run(TokenF1()(make_question("A"), "the")) == 0.0
    with pytest.raises(ValueError, match="above 0 and at most 1; got 0"):
        TokenF1(threshold=0)


ASKED = "Which one?\n(A) a cat\n(B) two dogs\n(C) 3,000 mice\nAnswer with a letter."


@pytest.mark.parametrize(
    ("given", "reference", "asked", "expected"),
    [
        *[(text, "B", ASKED, 1.0) for text in ("B", "b.", "(B)", "[b]", "option B", "Answer: B", "\\text{B}")],
        *[(text, "B", ASKED, 1.0) for text in ("B) two dogs", "(B) Two  dogs.", "B: two dogs", "two dogs")],
        *[(text, "B", ASKED, 0.0) for text in ("A", "B) a cat", "dogs", "A or B", "A, B", "B or something", "")],
        ("3,000 mice", "C", ASKED, 1.0),
        ("two dogs", "B", "no options here", 0.0),
        ("B. whatever", "B", "no options here", 1.0),
        ("C and A", "A, C", ASKED, 1.0),
        ("A", "A, C", ASKED, 0.0),
        ("ABD", "abd", ASKED, 1.0),  # reads as the reference
        *[(text, "C", "Which point?\nA. D\nB. C\nC. A", 1.0) for text in ("C", "(C)", "C. A")],  # options that are letters
        *[(text, "C", "Which point?\nA. D\nB. C\nC. A", 0.0) for text in ("A", "B", "B. C", "D")],
        ("D", "A", "Which point?\nA. D\nB. C\nC. A", 1.0),
        ("B", "two dogs", ASKED, 1.0),  # the reference may be the option's words
    ],
)
def test_multiple_choice(given, reference, asked, expected):
    assert asyncio.run(MultipleChoice()(make_question(reference, asked=asked), given)) == expected


def test_options_are_lines_in_order():
    assert options_of(make_question("A", asked=ASKED)) == {"a": "a cat", "b": "two dogs", "c": "3,000 mice"}
    assert options_of(make_question("A", asked="A. Einstein asked:\nwhat is it?")) == {}


def test_other_answers_match_exactly():
    assert asyncio.run(ExactMatch()(make_question("red", other=("crimson",)), "Crimson")) == 1.0


@pytest.mark.parametrize("verifier", [ExactMatch(), MultipleChoice(), TokenF1()], ids=lambda v: type(v).__name__)
def test_known_answers(verifier):
    checks = asyncio.run(VerifierRegistry({"s": verifier}).measure([]))
    assert len(checks) == len(verifier.known_answers) and all(check.passed for check in checks)
    assert {check.expected for check in checks} == {0.0, 1.0}


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


def test_a_verifier_that_is_down_fails_its_check_with_the_reason():
    async def down(question, answer):
        raise VerifierUnavailableError("no one there")

    with pytest.raises(CanaryError, match="the verifier of 'world' is not available: no one there"):
        asyncio.run(VerifierRegistry({"world": down}).check([question()]))


def test_closing_closes_what_can_be_closed():
    closed = []

    class Holder(ExactMatch):
        async def close(self):
            closed.append(self)

    asyncio.run(VerifierRegistry({"a": Holder(), "b": ExactMatch()}).close())
    assert len(closed) == 1


def test_a_reward_is_zero_or_one():
    async def half(question, answer):
        return 0.5

    with pytest.raises(AssertionError, match="rewards are 0 or 1"):
        asyncio.run(VerifierRegistry({"world": half}).reward(question(), "red"))
