"""Questions of the embedded world: an unlimited, seeded stream; question i of a stream is the same in every process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from nemo_axpo.data.images import ImageStore
from nemo_axpo.types import ImagePart, Message, Question, TextPart
from nemo_axpo.world.scene import NUM_COLUMNS, NUM_ROWS, Scene, SceneStyle, draw_scene

SOURCE = "world"


@dataclass(frozen=True)
class WorldQuestion:
    """A question with the scene behind it (the scene is for the teacher and the report, never for the policy)."""

    question: Question
    scene: Scene
    row: int
    column: int


def rng_for(*parts: object) -> np.random.Generator:
    """Generator that depends on its arguments alone, not on process, platform or call order."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class QuestionStream:
    """Fresh questions by index. Example: ``QuestionStream("train", seed=0, ...).take(32, 16)`` are questions 32 to 47."""

    def __init__(self, name: str, *, seed: int, style: SceneStyle, image_store: ImageStore) -> None:
        """``name`` separates the streams of one seed (training, evaluation, warm start)."""
        self._name, self._seed, self._style, self._images = name, seed, style, image_store

    def take(self, start: int, count: int) -> tuple[Question, ...]:
        """Questions ``start`` to ``start + count``; their pictures are in the store."""
        return tuple(self.world_question(index).question for index in range(start, start + count))

    def world_question(self, index: int) -> WorldQuestion:
        """Question ``index`` of the stream, with its scene."""
        rng = rng_for("question", self._name, self._seed, index)
        row, column = int(rng.integers(NUM_ROWS)), int(rng.integers(NUM_COLUMNS))
        scene = draw_scene(rng, row=row, column=column, style=self._style)
        image_id = self._images.add(scene.image)
        text = question_text(row=row, column=column)
        messages = (Message("user", (ImagePart(image_id), TextPart(text))),)
        answer = scene.colour_at(row=row, column=column)
        question = Question(f"{self._name}-{self._seed}-{index}", messages, answer, SOURCE)
        return WorldQuestion(question, scene, row, column)


def question_text(*, row: int, column: int) -> str:
    """Rows and columns count from 1 in words."""
    return f"colour of the dots in row {row + 1}, column {column + 1}?"
