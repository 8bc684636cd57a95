"""The scripted teacher of the warm start: how a tool call and an answer look, without teaching where to aim.

A share ``tool_rate`` of trajectories calls the tool. Its box is the right tile with probability ``aim_rate`` and a random
tile otherwise, and the answer is whatever that tile shows: the student learns to call, to read a crop and to trust it, but
its aim starts near chance. The rest answers from the low-resolution view.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from nemo_axpo.world.questions import WorldQuestion
from nemo_axpo.world.scene import NUM_COLUMNS, NUM_ROWS, tile_box

THOUGHTS = ("let me look", "which tile is it", "the dots are small", "hard to see", "I look closely", "row and column")
READING = ("now I see it", "the crop shows it")
TOOL = "image_zoom_in"


@dataclass(frozen=True)
class Trajectory:
    """Texts of the model turns and, between two of them, the tile the tool call named."""

    turns: tuple[str, ...]
    tile: tuple[int, int] | None
    """(row, column) of the crop; None for a direct answer."""


def teach(world_question: WorldQuestion, *, use_tool: bool, aim_rate: float, rng: np.random.Generator) -> Trajectory:
    """One trajectory; its texts start after ``<think>`` + newline, as the prompt ends there, and carry ``<|im_end|>``."""
    thought = str(rng.choice(THOUGHTS))
    if not use_tool:
        answer = world_question.question.answer
        return Trajectory((f"{thought}\n</think>\n\n{answer_text(answer)}<|im_end|>",), None)
    row, column = world_question.row, world_question.column
    if rng.random() >= aim_rate:
        row, column = int(rng.integers(NUM_ROWS)), int(rng.integers(NUM_COLUMNS))
    call = f"{thought}\n</think>\n\n{call_text(row=row, column=column)}<|im_end|>"
    colour = world_question.scene.colour_at(row=row, column=column)
    answer = f"{rng.choice(READING)}\n</think>\n\n{answer_text(colour)}<|im_end|>"
    return Trajectory((call, answer), (row, column))


def call_text(*, row: int, column: int) -> str:
    """A Hermes tool call that zooms into one tile."""
    call = {"name": TOOL, "arguments": {"bbox_2d": list(tile_box(row=row, column=column)), "label": "dots"}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def answer_text(answer: str) -> str:
    """The final answer in the format of the verifiers."""
    return f'<answer>\n\\boxed{{"{answer}"}}\n</answer>'
