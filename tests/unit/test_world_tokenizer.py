"""The world's tokenizer: numbers apart from words, phrases in few tokens, any other text without loss."""

from __future__ import annotations

import re

import pytest
from scripted_agent import tokenizer

from nemo_axpo.data.vocabulary import TOKEN_TEXT
from nemo_axpo.world.questions import question_text
from nemo_axpo.world.scene import COLOURS
from nemo_axpo.world.tokenizer import VOCAB_SIZE
from nemo_axpo.world.trajectories import READING, THOUGHTS, answer_text, call_text


def pieces(text):
    return [tokenizer().decode([token]) for token in tokenizer().encode(text, add_special_tokens=False)]


def test_a_box_is_four_numbers_and_everything_around_them_is_fixed():
    """What the policy has to learn about aiming are four tokens; the name of the argument is none of them."""
    parts = pieces(call_text(row=1, column=1))
    assert [part for part in parts if part.isdigit()] == ["333", "500", "667", "1000"]
    rest = [part for part in parts if not part.isdigit()]
    assert not re.search(r"\d", "".join(rest).replace("bbox_2d", ""))
    assert rest == [part for part in pieces(call_text(row=0, column=2)) if not part.isdigit()]


def test_rows_and_columns_are_numbers_too():
    assert [part for part in pieces(question_text(row=0, column=2)) if part.isdigit()] == ["1", "3"]


def test_phrases_are_short():
    assert all(len(pieces(answer_text(colour))) <= 5 for colour in COLOURS)
    assert all(len(pieces(phrase)) <= 6 for phrase in (*THOUGHTS, *READING))
    assert len(pieces(call_text(row=1, column=2))) <= 14


@pytest.mark.parametrize(
    "text", ["Grüße, 日本語 🙂", "x_1 2d 007", "  spaces \n\n\n kept\t", '{"a": [1.5, -2]}', "<tool"]
)
def test_any_text_survives(text):
    ids = tokenizer().encode(text, add_special_tokens=False)
    assert tokenizer().decode(ids) == text and max(ids) < len(tokenizer()) < VOCAB_SIZE


def test_control_tokens_are_single_inside_text():
    for text in (*TOKEN_TEXT.values(), "<tool_response>", "</tool_response>"):
        assert pieces(f"a{text}b").count(text) == 1


def test_skipping_special_tokens_keeps_thinking_and_calls_as_in_qwen():
    ids = tokenizer().encode("<|im_start|><think><tool_call>{}</tool_call><|im_end|>", add_special_tokens=False)
    assert tokenizer().decode(ids, skip_special_tokens=True) == "<think><tool_call>{}</tool_call>"
