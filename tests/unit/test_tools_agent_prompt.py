"""One file tells an agent how to work and describes its tools; what does not fit the tools on offer is left out."""

from __future__ import annotations

import re

import pytest
from jsonschema import Draft202012Validator
from scripted_agent import image_store

from nemo_axpo.config.load import load_config
from nemo_axpo.data.vocabulary import TOKEN_TEXT
from nemo_axpo.rewards.extraction import extract_answer
from nemo_axpo.tools.agent_prompt import agent_instructions, read_instructions, tool_schema
from nemo_axpo.tools.build import build_tool

NAMES = ("python", "image_zoom_in", "tavily-search")


def test_every_tool_on_offer_is_spoken_of_in_its_order_and_no_other():
    text = agent_instructions(NAMES)
    places = [text.index(f"\n{name}: ") for name in NAMES]
    assert places == sorted(places) and places[-1] < text.index("<answer>")
    assert re.findall(r"^[\w-]+(?=: )", agent_instructions(["tavily-search", "python"]), re.MULTILINE) == [
        "tavily-search",
        "python",
    ]


def test_the_non_agent_reads_nothing_of_tools():
    text = agent_instructions([])
    assert not re.search(r"tool|call|python|crop|search|zoom", text)
    paragraphs = agent_instructions(NAMES).split("\n\n")
    assert text.split("\n\n") == [paragraphs[0], paragraphs[-1]]


def test_a_tool_of_ones_own_is_a_tool():
    assert agent_instructions(["calculator"]).split("\n\n") == agent_instructions(["python"]).split("\n\n")[:2] + [
        agent_instructions([]).split("\n\n")[-1]
    ]


def test_the_answers_form_is_the_one_that_is_read():
    form = "\n".join(agent_instructions([]).splitlines()[-3:])
    assert extract_answer(f"<think>\n…\n</think>\n\n{form}<|im_end|>") == "the answer"


def test_nothing_spells_a_control_token():
    assert not any(token in agent_instructions(NAMES) for token in TOKEN_TEXT.values())


@pytest.mark.parametrize(
    ("name", "required", "types", "defaults"),
    [
        ("python", ["code"], {"code": "string", "timeout": "integer"}, {"timeout": 12}),
        (
            "image_zoom_in",
            ["bbox_2d", "label"],
            {"bbox_2d": "array", "label": "string", "img_idx": "number"},
            {"img_idx": 0},
        ),
        ("tavily-search", ["query"], {"query": "string", "max_results": "integer"}, {"max_results": 5}),
    ],
)
def test_schemas_are_the_papers(name, required, types, defaults):
    function = tool_schema(name)["function"]
    properties = function["parameters"]["properties"]
    Draft202012Validator.check_schema(function["parameters"])
    assert function["name"] == name and function["parameters"]["required"] == required
    assert {key: value["type"] for key, value in properties.items()} == types
    assert {key: value["default"] for key, value in properties.items() if "default" in value} == defaults


def test_tools_show_these_schemas(monkeypatch):
    monkeypatch.setenv("TAVILY_API_KEY", "k")
    config = load_config(["tools=agent", "tools.python.timeout_s=30"]).tools
    shown = {name: build_tool(name, config=config, images=image_store()).schema for name in config.names}
    expected = {name: tool_schema(name) for name in NAMES}
    expected["python"]["function"]["parameters"]["properties"]["timeout"]["default"] = 30
    assert shown == expected
    assert (
        tool_schema("python")["function"]["parameters"]["properties"]["timeout"]["default"] == 12
    )  # a copy was changed


def test_instructions_of_ones_own(tmp_path):
    (tmp_path / "mine.txt").write_text("Look closely.\n")
    assert read_instructions(str(tmp_path / "mine.txt"), tool_names=NAMES) == "Look closely."
    assert read_instructions(None, tool_names=NAMES) == ""
    assert read_instructions("agent", tool_names=NAMES) == agent_instructions(NAMES)
    with pytest.raises(ValueError, match="instructions is agent, null, or a text file that can be read; got .*agents"):
        read_instructions("agents", tool_names=NAMES)
