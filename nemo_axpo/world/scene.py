"""Scenes of the embedded world: swatches of dotted cloth in the light that falls through one of them.

Every tile of the picture is a swatch with fine dots of one colour on a ground that balances them, so that from afar dots
and ground blend into gray. One swatch, the one the question asks about, hangs before the lamp: its colour lies as a faint
tint on the whole picture, mixed with daylight of a random colour. The model sees the picture through its image processor,
which shrinks it fourfold: the dots vanish, only the light remains. That view carries limited information however long one
trains. ``image_zoom_in`` crops the full picture; there the dots are plain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "orange": (255, 128, 0),
    "purple": (128, 0, 255),
}
NUM_ROWS, NUM_COLUMNS = 2, 3
TILE = 64
"""Side of a tile in pixels of the full picture; the model's view shows it at a quarter of that."""
PERIOD = 4
"""Distance of the dots in pixels: one pixel of the view, two of a zoomed tile. A dot is half as wide."""
GRAY = 127.5


@dataclass(frozen=True)
class SceneStyle:
    """What decides how much each view tells. Contrasts are shares of a colour's distance from gray."""

    dots: float = 0.5
    """Contrast of the dots, visible only when zoomed in."""
    tint: float = 0.25
    """Contrast of the lit swatch's colour in the light on the whole picture."""
    daylight: float = 40.0
    """Standard deviation of the daylight's colour, in 0–255 levels per channel: the noise on the tint."""


@dataclass(frozen=True)
class Scene:
    """Dot colours tile by tile, row by row, and the picture."""

    colours: tuple[str, ...]
    image: Image.Image

    def colour_at(self, *, row: int, column: int) -> str:
        """Dot colour of a tile; rows and columns count from 0."""
        return self.colours[row * NUM_COLUMNS + column]


def draw_scene(rng: np.random.Generator, *, row: int, column: int, style: SceneStyle) -> Scene:
    """A fresh scene lit through the swatch at ``row``, ``column``: independent colours, random daylight."""
    names = tuple(COLOURS)
    indices = rng.integers(len(names), size=NUM_ROWS * NUM_COLUMNS)
    offsets_N3 = np.array([COLOURS[names[i]] for i in indices]) - GRAY
    light_3 = style.tint * offsets_N3[row * NUM_COLUMNS + column] + rng.normal(scale=style.daylight, size=3)
    tiles = GRAY + light_3 + _weave()[None, :, :, None] * style.dots * offsets_N3[:, None, None, :]
    rows = tiles.clip(0, 255).astype(np.uint8).reshape(NUM_ROWS, NUM_COLUMNS, TILE, TILE, 3).swapaxes(1, 2)
    pixels = np.ascontiguousarray(rows.reshape(NUM_ROWS * TILE, NUM_COLUMNS * TILE, 3))
    return Scene(tuple(names[i] for i in indices), Image.fromarray(pixels))


def tile_box(*, row: int, column: int) -> tuple[int, int, int, int]:
    """``bbox_2d`` of a tile in the tool's 0–1000 frame: x1, y1, x2, y2."""
    edges_x = [round(1000 * i / NUM_COLUMNS) for i in range(NUM_COLUMNS + 1)]
    edges_y = [round(1000 * i / NUM_ROWS) for i in range(NUM_ROWS + 1)]
    return edges_x[column], edges_y[row], edges_x[column + 1], edges_y[row + 1]


def _weave() -> np.ndarray:
    """[TILE, TILE]: 1 on dots, which cover a quarter of the cloth, and −1/3 on the ground, which cancels them from afar."""
    on = (np.arange(TILE) % PERIOD) < PERIOD // 2
    return np.where(np.outer(on, on), 1.0, -1.0 / 3.0)
