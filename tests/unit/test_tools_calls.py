"""Tool calls are found on token ids, and what the model wrote never raises."""

from __future__ import annotations

import json

import pytest
from scripted_agent import CALL, image_store, tokenizer

from nemo_axpo.data.vocabulary import SpecialTokens
from nemo_axpo.tools.calls import find_tool_call, parse_tool_call
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.tools.registry import ToolRegistry

SPECIAL = SpecialTokens.from_tokenizer(tokenizer())
REGISTRY = ToolRegistry([ImageZoomIn(image_store())])


def encode(*texts: str) -> list[int]:
    """Each text on its own, so that a tag split over two texts stays ordinary tokens."""
    return [token for text in texts for token in tokenizer().encode(text, add_special_tokens=False)]


def parse(token_ids: list[int]):
    return parse_tool_call(token_ids, special=SPECIAL, decode=tokenizer().decode, registry=REGISTRY)


def call_with(**changes) -> list[int]:
    """A completion that calls the tool with changed arguments; ``...`` removes one."""
    arguments = {"bbox_2d": [0, 0, 333, 500], "label": "dot"} | changes
    arguments = {name: value for name, value in arguments.items() if value is not ...}
    return call_json(json.dumps({"name": "image_zoom_in", "arguments": arguments}))


def call_json(text: str) -> list[int]:
    return encode(f"</think><tool_call>{text}</tool_call><|im_end|>")


def test_a_call_spans_from_after_its_opening_through_its_closing_token():
    ids = encode("let me look\n</think>\n\n", CALL, "<|im_end|>")
    call = parse(ids)
    assert ids[call.start - 1] == SPECIAL.tool_call and ids[call.stop - 1] == SPECIAL.tool_call_end
    assert call.stop == len(ids) - 1
    assert (call.name, call.error, call.error_kind) == ("image_zoom_in", "", "")
    assert call.arguments == {"bbox_2d": [0, 0, 333, 500], "label": "dot"}


@pytest.mark.parametrize(
    "texts",
    [
        ("let me look\n</think>\n\n<answer>\n</answer><|im_end|>",),
        ("I could write <tool", "_call> here\n</think>\n\n<answer></answer><|im_end|>"),  # spelled, inside the thinking
        ("so\n</think>\n\n<tool", "_call>{}</tool", "_call><|im_end|>"),  # spelled, after the thinking
        ("<tool_call>{}</tool_call>\n</think>\n\n<answer></answer><|im_end|>",),  # the id, inside the thinking
        ("<tool_call>{}</tool_call><|im_end|>",),  # the thinking never ends
        ("<tool_call>{}\n</think></tool_call><|im_end|>",),  # begun inside the thinking
        ("",),
    ],
)
def test_no_call(texts):
    ids = encode(*texts)
    assert find_tool_call(ids, special=SPECIAL) is None and parse(ids) is None


def test_spelled_tags_are_ordinary_tokens():
    spelled = encode("<tool", "_call>")
    assert SPECIAL.tool_call not in spelled and tokenizer().decode(spelled) == "<tool_call>"


def test_a_call_inside_the_thinking_does_not_hide_the_real_one():
    thought = encode("<tool_call>{}</tool_call>\n</think>\n\n")
    call = parse([*thought, *encode(CALL)])
    assert call.start == len(thought) + 1 and call.error == ""


def test_only_the_first_of_two_calls_is_read():
    first = encode("</think>", CALL)
    call = parse([*first, *encode(CALL.replace("333", "999"), "<|im_end|>")])
    assert call.stop == len(first) and call.arguments["bbox_2d"][2] == 333


def test_an_unclosed_call_reaches_to_the_end():
    ids = encode("</think><tool_call>", '{"name": "image', "<|im_end|>")
    call = parse(ids)
    assert (call.stop, call.error_kind) == (len(ids), "unclosed")
    assert parse(ids[:2]).start == parse(ids[:2]).stop == 2


@pytest.mark.parametrize(
    ("ids", "kind", "words"),
    [
        (call_json('{"name": "image_zoom_in", '), "bad_json", "not valid JSON"),
        (call_json(""), "bad_json", "not valid JSON"),
        (call_json("[1, 2]"), "bad_json", "must be"),
        (call_json('{"arguments": {}}'), "bad_json", "must be"),
        (call_json('{"name": 3, "arguments": {}}'), "bad_json", "must be"),
        (call_json("[" * 100_000), "bad_json", "not valid JSON"),
        (call_json('{"name": "image_zoom_in", "arguments": ' + "9" * 5000 + "}"), "bad_json", "not valid JSON"),
        (call_json('{"name": "image_zoom_in", "arguments": {"label": "\\ud800"}}'), "bad_json", "surrogates not allowed"),
        (call_json('{"name": "image_zoom_in", "arguments": {"bbox_2d": [NaN, 0, 1, 1e999]}}'), "bad_json", "float values"),
        (call_json('{"name": "image_zoom_in", "arguments": "x"}'), "bad_arguments", "must be an object"),
        (call_json('{"name": "image_zoom_in"}'), "bad_arguments", "missing argument bbox_2d"),
        (call_json('{"name": "zoom", "arguments": {}}'), "unknown_tool", "unknown tool zoom: use image_zoom_in"),
        (call_json('{"name": "any words", "arguments": 3}'), "unknown_tool", "unknown tool any words"),
        (call_with(label=...), "bad_arguments", "missing argument label"),
        (call_with(label=3), "bad_arguments", "label must be string"),
        (call_with(bbox_2d=[0, 0, 1]), "bad_arguments", "bbox_2d has 3 items, minItems is 4"),
        (call_with(bbox_2d=[0, 0, 1, 2, 3]), "bad_arguments", "bbox_2d has 5 items, maxItems is 4"),
        (call_with(bbox_2d=[0, 0, "1", 2]), "bad_arguments", "bbox_2d[2] must be number"),
        (call_with(img_idx=True), "bad_arguments", "img_idx must be number"),
    ],
)
def test_a_malformed_call_is_a_call_with_an_error_to_read(ids, kind, words):
    call = parse(ids)
    assert call.error_kind == kind and words in call.error


def test_every_cut_of_a_completion_parses():
    ids = encode("look\n</think>\n\n", CALL, "<|im_end|>")
    opening = ids.index(SPECIAL.tool_call)
    for stop in range(len(ids)):
        assert (parse(ids[:stop]) is None) == (stop <= opening)


class Named:
    def __init__(self, name, schema):
        self.name, self.schema = name, schema


def function(name, parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_the_registry_refuses_what_would_fail_later():
    good = Named("a", function("a", {"type": "object"}))
    assert ToolRegistry([good]).names == ("a",) and ToolRegistry([good]).schemas == (good.schema,)
    with pytest.raises(ValueError, match="two tools are named 'a'"):
        ToolRegistry([good, good])
    with pytest.raises(ValueError, match="give both the same name"):
        ToolRegistry([Named("a", function("b", {}))])
    with pytest.raises(ValueError, match="function.parameters"):
        ToolRegistry([Named("a", {"type": "function"})])
    with pytest.raises(ValueError, match="JSON schema"):
        ToolRegistry([Named("a", function("a", {"type": "nonsense"}))])
