"""Our side of ``benchmarks/trl_step.py``: rows, calls and tokens are as forced, counted by hand; unequal sides are refused."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from grpo_step.ours import Ours
from grpo_step.setting import Setting, best_step, opening_text, save_checkpoint
from trl_step import check_same

from nemo_axpo.data.vocabulary import load_tokenizer
from nemo_axpo.world.tokenizer import CHAT_TEMPLATE

NUM_NEW = 72


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The tiny model; the world's template stands in for the one TRL bundles."""
    path = tmp_path_factory.mktemp("trl_step")
    save_checkpoint(path, template=CHAT_TEMPLATE.replace("<think>\\n", ""), mode="tool")
    return path


def counts_of(mode, checkpoint):
    """Of the one measured step of 2 questions × 4 rows."""
    setting = Setting(mode, num_questions=2, num_rollouts=4, num_new=NUM_NEW, num_steps=1)
    return best_step(asyncio.run(Ours(setting, checkpoint=checkpoint).run()))["counts"][0]


def test_every_row_fills_its_budget(checkpoint):
    counts = counts_of("image", checkpoint)
    assert counts["rows"] == 8 and counts["images"] == 8 and counts["tool_calls"] == 0
    assert counts["sampled_tokens"] == counts["trained_tokens"] == 8 * NUM_NEW
    assert (counts["encoded_for_rollout"], counts["encoded_for_update"]) == (2, 2)  # one picture a question, seen once


def test_every_second_row_calls_the_tool(checkpoint):
    counts = counts_of("tool", checkpoint)
    assert counts["rows"] == 8 and counts["tool_calls"] == 4 and counts["images"] == 12
    tokenizer = load_tokenizer(checkpoint)
    observation = tokenizer.encode(
        "\n<|im_start|>user\n<tool_response>\n<|vision_start|><|vision_end|>image 1:\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n",
        add_special_tokens=False,
    )
    num_observed = 4 * (len(observation) + 4)  # a tile of 64 × 64 pixels is shown as 2 × 2 tokens
    assert counts["sampled_tokens"] == counts["trained_tokens"] == 8 * NUM_NEW - num_observed


def test_openings_ask_for_different_tiles():
    setting = Setting("tool")
    texts = [opening_text(setting, number=number) for number in range(8)]
    assert len({text for text in texts[::2]}) == 4 and set(texts[1::2]) == {""}


def test_unequal_sides_are_refused():
    same = dict.fromkeys(("rows", "row_tokens", "sampled_tokens", "trained_tokens", "tool_calls", "images"), 100)
    check_same("text", {"ours": {**same, "prompts": "a"}, "trl": {**same, "prompts": "a", "sampled_tokens": 101}})
    for name, value in (("prompts", "b"), ("trained_tokens", 103)):
        with pytest.raises(RuntimeError, match=name):
            check_same("text", {"ours": {**same, "prompts": "a"}, "trl": {**same, "prompts": "a", name: value}})
