"""The stream of questions: addressable, endless, and the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scripted_agent import image_store

from nemo_axpo.types import ImagePart, TextPart
from nemo_axpo.world.questions import QuestionStream, question_text, rng_for
from nemo_axpo.world.scene import SceneStyle

_ELSEWHERE = """
import json
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.data.images import ImageStore
from nemo_axpo.world.questions import QuestionStream
from nemo_axpo.world.scene import SceneStyle
from nemo_axpo.world.tokenizer import build_tokenizer
stream = QuestionStream("train", seed=7, style=SceneStyle(), image_store=ImageStore(tiny_image_processor()))
questions = [[q.question_id, q.answer, q.messages[0].parts[1].text, *q.image_ids] for q in stream.take(30, 4)]
print(json.dumps({"questions": questions, "tokenizer": build_tokenizer().backend_tokenizer.to_str()}))
"""


@pytest.fixture(scope="module")
def elsewhere():
    """The same stream and tokenizer, built by another process with other hashes of strings."""
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    command = [sys.executable, "-c", _ELSEWHERE]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def stream(name="train", *, seed=7, store=None):
    return QuestionStream(name, seed=seed, style=SceneStyle(), image_store=image_store() if store is None else store)


def described(questions):
    return [[q.question_id, q.answer, q.messages[0].parts[1].text, *q.image_ids] for q in questions]


def test_another_process_asks_the_same_questions(elsewhere):
    assert described(stream().take(30, 4)) == elsewhere["questions"]


def test_another_process_has_the_same_tokenizer(elsewhere):
    from scripted_agent import tokenizer

    assert tokenizer().backend_tokenizer.to_str() == elsewhere["tokenizer"]


def test_a_question_does_not_depend_on_where_the_reading_starts():
    assert described(stream().take(0, 8))[3:5] == described(stream().take(3, 2))


def test_names_and_seeds_are_streams_of_their_own():
    images = {stream(name, seed=seed).take(0, 1)[0].image_ids for name in ("train", "eval") for seed in (7, 8)}
    assert len(images) == 4


def test_a_question_shows_the_picture_then_asks_for_one_of_its_tiles():
    store = image_store()
    asked = stream(store=store).world_question(5)
    image, text = asked.question.messages[0].parts
    assert isinstance(image, ImagePart) and image.image_id in store and asked.question.question_id == "train-7-5"
    assert text == TextPart(f"colour of the dots in row {asked.row + 1}, column {asked.column + 1}?")
    assert asked.question.answer == asked.scene.colour_at(row=asked.row, column=asked.column)
    assert store.image(image.image_id).tobytes() == asked.scene.image.tobytes()


def test_every_tile_is_asked_for_equally_often():
    counts = Counter(q.messages[0].parts[1].text for q in stream().take(0, 600))
    assert len(counts) == 6 and question_text(row=0, column=0) in counts
    assert all(70 <= count <= 130 for count in counts.values())


def test_pictures_do_not_repeat():
    store = image_store()
    stream(store=store).take(0, 300)
    assert len(store) == 300


def test_a_generator_depends_on_all_of_its_parts():
    draws = {rng_for(*parts).integers(2**60) for parts in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 0))}
    assert len(draws) == 4 and rng_for("a", 1).integers(2**60) in draws
