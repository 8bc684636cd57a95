"""A second task of the embedded world: count what is too small and too many to be counted by eye.

A picture of gray tiles with specks of one pixel, a few dozen in each. The question asks for the number in one tile. The model's view
shows none of them; the crop of ``image_zoom_in`` shows them, but enlarged pixels are not a number: ``python`` counts them in
``_pil_images[1]``, the image that the other tool returned. Deterministic from its seed, like the first task.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from nemo_axpo.data.images import ImageStore
from nemo_axpo.types import ImagePart, Message, Question, TextPart
from nemo_axpo.world.questions import rng_for
from nemo_axpo.world.scene import NUM_COLUMNS, NUM_ROWS, TILE

SPECKS = "world_specks"
"""Name of the data source."""
FEWEST, MOST = 20, 60
"""Specks of a tile."""
GROUND, SPECK = (90, 100, 110), (250, 240, 60)


class SpeckStream:
    """Fresh questions by index, as :class:`nemo_axpo.world.questions.QuestionStream`."""

    def __init__(self, name: str, *, seed: int, image_store: ImageStore) -> None:
        """``name`` separates the streams of one seed."""
        self._name, self._seed, self._images = name, seed, image_store

    def take(self, start: int, count: int) -> tuple[Question, ...]:
        """Questions ``start`` to ``start + count``; their pictures are in the store."""
        return tuple(self._question(index) for index in range(start, start + count))

    def _question(self, index: int) -> Question:
        rng = rng_for("specks", self._name, self._seed, index)
        row, column = int(rng.integers(NUM_ROWS)), int(rng.integers(NUM_COLUMNS))
        image, counts = draw_specks(rng)
        text = f"number of specks in row {row + 1}, column {column + 1}?"
        messages = (Message("user", (ImagePart(self._images.add(image)), TextPart(text))),)
        answer = str(counts[row * NUM_COLUMNS + column])
        return Question(f"specks-{self._name}-{self._seed}-{index}", messages, answer, SPECKS)


def draw_specks(rng: np.random.Generator) -> tuple[Image.Image, tuple[int, ...]]:
    """The picture, and the number of specks tile by tile, row by row.

    No speck touches the edge of its tile, so that a crop rounded by a pixel holds the same ones.
    """
    pixels = np.full((NUM_ROWS * TILE, NUM_COLUMNS * TILE, 3), GROUND, dtype=np.uint8)
    counts = tuple(int(count) for count in rng.integers(FEWEST, MOST + 1, size=NUM_ROWS * NUM_COLUMNS))
    inside = TILE - 4
    for tile, count in enumerate(counts):
        top, left = divmod(tile, NUM_COLUMNS)
        places = rng.choice(inside * inside, size=count, replace=False)
        pixels[top * TILE + 2 + places // inside, left * TILE + 2 + places % inside] = SPECK
    return Image.fromarray(pixels), counts
