"""Special tokens by id: single ones are found, split ones refused with the cure, and what may never be sampled."""

from __future__ import annotations

import json

import pytest
from scripted_agent import tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from nemo_axpo.data.vocabulary import TOKEN_TEXT, SpecialTokens, banned_token_ids


def tokenizer_without(text, **options):
    """The world's tokenizer, but ``text`` is ordinary text."""
    state = json.loads(tokenizer().backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != text]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **options)


def test_every_control_token_is_found_by_its_own_id():
    special = SpecialTokens.from_tokenizer(tokenizer())
    ids = vars(special)
    assert {name: tokenizer().convert_ids_to_tokens(token) for name, token in ids.items()} == TOKEN_TEXT
    assert len(set(ids.values())) == len(TOKEN_TEXT) == 11


@pytest.mark.parametrize("text", ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|image_pad|>"])
def test_a_split_token_is_refused_with_the_cure(text):
    split = tokenizer_without(text)
    assert len(split.encode(text, add_special_tokens=False)) > 1
    with pytest.raises(ValueError) as caught:
        SpecialTokens.from_tokenizer(split)
    message = str(caught.value)
    assert message.startswith(f"{text} must be a single token, but this tokenizer encodes it as [")
    assert f"tokenizer.add_tokens(['{text}'], special_tokens=True) and resize the embeddings" in message


def test_an_unknown_token_is_not_taken_for_the_one():
    words = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
    state = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "model": words}
    state |= {"post_processor": None, "decoder": None, "truncation": None, "padding": None}
    unknown = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="[UNK]")
    assert unknown.encode("<think>", add_special_tokens=False) == [0]
    with pytest.raises(ValueError, match="must be a single token"):
        SpecialTokens.from_tokenizer(unknown)


def test_banned_are_placeholders_and_rows_without_a_token():
    special, size = SpecialTokens.from_tokenizer(tokenizer()), len(tokenizer())
    placeholders = {special.image_pad, special.video_pad, special.vision_start, special.vision_end}
    assert banned_token_ids(tokenizer(), vocab_size=size) == tuple(sorted(placeholders))
    assert set(banned_token_ids(tokenizer(), vocab_size=size + 3)) - placeholders == {size, size + 1, size + 2}
    assert not {special.im_end, special.tool_call, special.think_end} & set(
        banned_token_ids(tokenizer(), vocab_size=512)
    )
