"""The scripted teacher: calls the real parser reads, boxes that crop one tile exactly, answers that say what was shown."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest
from scripted_agent import image_store, tokenizer

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.rewards.extraction import extract_answer
from nemo_axpo.tools.calls import parse_tool_call
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.world.questions import QuestionStream
from nemo_axpo.world.scene import COLOURS, NUM_COLUMNS, NUM_ROWS, TILE, SceneStyle
from nemo_axpo.world.trajectories import THOUGHTS, answer_text, call_text, teach


class Classroom:
    """Questions, and the real tools that answer the teacher's calls."""

    def __init__(self):
        self.store = image_store()
        self.tools = ToolExecutor(ToolRegistry([ImageZoomIn(self.store, observation="image {index}:")]))
        self.renderer = ChatRenderer(tokenizer(), self.store, tool_schemas=self.tools.registry.schemas)
        self.stream = QuestionStream("train", seed=0, style=SceneStyle(), image_store=self.store)

    def parse(self, text):
        return parse_tool_call(
            self.renderer.encode(text),
            special=self.renderer.special,
            decode=self.renderer.decode,
            registry=self.tools.registry,
        )

    def crop(self, text, asked):
        """What the tool shows for the call in a model turn, as pixels."""
        state = self.tools.open(asked.question.image_ids)
        result = asyncio.run(state.run(self.parse(text)))
        assert not result.error, result
        return np.asarray(self.store.image(result.image_ids[0]))


def lessons(room, count, *, use_tool, aim_rate):
    for index in range(count):
        asked = room.stream.world_question(index)
        yield asked, teach(asked, use_tool=use_tool, aim_rate=aim_rate, rng=np.random.default_rng(index))


def tile_pixels(asked, row, column):
    rows, columns = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
    return np.asarray(asked.scene.image)[rows, columns]


@pytest.mark.parametrize("row", range(NUM_ROWS))
@pytest.mark.parametrize("column", range(NUM_COLUMNS))
def test_a_call_crops_exactly_its_tile(row, column):
    room = Classroom()
    asked = room.stream.world_question(0)
    text = f"{THOUGHTS[0]}\n</think>\n\n{call_text(row=row, column=column)}<|im_end|>"
    assert np.array_equal(room.crop(text, asked), tile_pixels(asked, row, column))


@pytest.mark.parametrize("aim_rate", [0.0, 1.0])
def test_the_answer_is_what_the_crop_showed(aim_rate):
    room = Classroom()
    for asked, lesson in lessons(room, 20, use_tool=True, aim_rate=aim_rate):
        call, answer = lesson.turns
        assert np.array_equal(room.crop(call, asked), tile_pixels(asked, *lesson.tile))
        row, column = lesson.tile
        assert extract_answer(answer.partition("</think>")[2]) == asked.scene.colour_at(row=row, column=column)
        assert room.parse(answer) is None


def test_a_perfect_aim_names_the_asked_tile():
    room = Classroom()
    for asked, lesson in lessons(room, 30, use_tool=True, aim_rate=1.0):
        assert lesson.tile == (asked.row, asked.column)


def test_without_aim_every_tile_is_as_likely_whatever_was_asked():
    room = Classroom()
    taught = list(lessons(room, 600, use_tool=True, aim_rate=0.0))
    counts = Counter(lesson.tile for _, lesson in taught)
    assert len(counts) == 6 and all(70 <= count <= 130 for count in counts.values())
    hits = sum(lesson.tile == (asked.row, asked.column) for asked, lesson in taught)
    assert 70 <= hits <= 130


def test_a_direct_lesson_thinks_and_answers_right():
    room = Classroom()
    for asked, lesson in lessons(room, 20, use_tool=False, aim_rate=0.0):
        (turn,) = lesson.turns
        thought, _, spoken = turn.partition("\n</think>\n\n")
        assert thought in THOUGHTS and extract_answer(spoken) == asked.question.answer
        assert room.parse(turn) is None and lesson.tile is None


def test_every_turn_ends_where_the_model_must_stop():
    room = Classroom()
    for use_tool in (True, False):
        for _, lesson in lessons(room, 5, use_tool=use_tool, aim_rate=0.5):
            for turn in lesson.turns:
                ids = room.renderer.encode(turn)
                assert ids[-1] == room.renderer.special.im_end and ids.count(ids[-1]) == 1


def test_no_answer_and_no_box_betrays_itself_by_its_length():
    room = Classroom()
    answers = {len(room.renderer.encode(answer_text(colour))) for colour in COLOURS}
    calls = {
        len(room.renderer.encode(call_text(row=row, column=column)))
        for row in range(NUM_ROWS)
        for column in range(NUM_COLUMNS)
    }
    assert len(answers) == 1 and len(calls) == 1
    assert all(len(room.renderer.encode(str(edge))) == 1 for edge in (0, 333, 500, 667, 1000))
