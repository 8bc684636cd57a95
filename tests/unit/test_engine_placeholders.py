"""Prompts on the wire: hand-made rows, every way in which a server's prompt can differ, and random layouts."""

from __future__ import annotations

import random

import pytest

from nemo_axpo.engines.base import EngineError, PromptMismatchError
from nemo_axpo.engines.placeholders import collapse, require_same_prompt

I, START, END = 90, 91, 92


def check(ours, returned) -> None:
    require_same_prompt(ours, returned, request_id="q7/0/t1", image_token_id=I)


@pytest.mark.parametrize(
    "ids,expected",
    [
        ([7, I, I, I, 8, I, I, 9], [7, I, 8, I, 9]),
        ([I, I, START, I], [I, START, I]),
        ([7, 7, 8], [7, 7, 8]),
        ([I], [I]),
        ([], []),
    ],
)
def test_collapse(ids, expected):
    assert collapse(ids, image_token_id=I) == expected


def test_collapse_undoes_any_expansion():
    rng = random.Random(0)
    for _ in range(200):
        pieces = [[START, I, END] if rng.random() < 0.3 else [rng.randrange(90)] for _ in range(rng.randrange(12))]
        single = [token for piece in pieces for token in piece]
        expanded = [copy for token in single for copy in [token] * (rng.randrange(1, 9) if token == I else 1)]
        assert collapse(expanded, image_token_id=I) == single


def test_the_same_prompt_passes():
    for prompt in ([7, START, I, I, END, 8], [1]):
        check(tuple(prompt), prompt)


@pytest.mark.parametrize(
    "returned,message",
    [
        (None, r"'q7/0/t1'.*got no prompt token ids: the server must return them"),
        ([7, START, I, I, END, 8], r"got 2 placeholders for image 0, our image processor makes 3.*preprocessor_config"),
        ([7, START, *[I] * 6, END, 8], r"got 6 placeholders for image 0.*expanded a run twice"),
        ([7, START, I, END, 8], r"got 1 placeholders for image 0.*as it was sent"),
        ([7, START, I, I, I, END, 5, 6], r"8 token ids for our 7, from token 6 on \[5, 6\] for our \[8\].*tokenised"),
        ([7, START, END, 8], r"4 token ids for our 7, from token 2 on \[92, 8\].*left an image out"),
        ([7, START, I, I, I, END], r"6 token ids for our 7, from token 6 on \[\] for our \[8\]"),
        ([], r"0 token ids for our 7, from token 0 on \[\]"),
    ],
)
def test_another_prompt_is_named(returned, message):
    with pytest.raises(PromptMismatchError, match=message) as raised:
        check((7, START, I, I, I, END, 8), returned)
    assert isinstance(raised.value, EngineError)


def test_the_image_that_differs_is_counted():
    with pytest.raises(PromptMismatchError, match="got 4 placeholders for image 1, our image processor makes 2"):
        check((START, I, END, START, I, I, END), (START, I, END, START, *[I] * 4, END))
