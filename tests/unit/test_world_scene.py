"""Scenes: the same from a seed, dots that show in a crop and not in the view, light that tells as much as it should."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image
from scripted_agent import image_store

from nemo_axpo.config.load import load_config
from nemo_axpo.world.questions import rng_for
from nemo_axpo.world.scene import COLOURS, GRAY, NUM_COLUMNS, NUM_ROWS, TILE, SceneStyle, draw_scene, tile_box

STYLE = SceneStyle(dots=0.5, tint=0.25, daylight=40.0)
VIEW_TILE = TILE // 4
"""Side of a tile in the model's view, in pixels."""
TILES = [(row, column) for row in range(NUM_ROWS) for column in range(NUM_COLUMNS)]


def scene(seed=0, *, row=1, column=2, style=STYLE):
    return draw_scene(rng_for("golden", seed), row=row, column=column, style=style)


def shipped_style():
    world = load_config([]).world
    return SceneStyle(dots=world.dots, tint=world.tint, daylight=world.daylight)


def seen(image, *, patch=8, merge=2):
    """The image as the vision tower gets it, [height, width, 3] in levels of 0-255: the processor's patches put back."""
    store = image_store()
    features = store.features(store.add(image))
    _, height, width = features.grid_thw
    patches = features.pixel_values_PD.reshape(height // merge, width // merge, merge, merge, 3, 2, patch, patch)[
        :, :, :, :, :, 0
    ]
    pixels = patches.permute(0, 2, 5, 1, 3, 6, 4).reshape(height * patch, width * patch, 3)
    return (pixels.numpy() * 0.5 + 0.5) * 255


def tile_of(pixels, *, row, column, side):
    return pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]


def crop_of(image, *, row, column):
    return image.crop((column * TILE, row * TILE, (column + 1) * TILE, (row + 1) * TILE))


# -------------------------------------------------------------------------------------------------------- the draw
def test_a_seed_gives_this_scene():
    drawn = scene()
    assert drawn.colours == ("yellow", "magenta", "white", "red", "cyan", "purple")
    digest = hashlib.sha256(drawn.image.tobytes()).hexdigest()
    assert digest == "5f0cc6bde163feb1185b5bc322b916f6ca6970de8e0ad128db703512499b54e5"
    assert drawn.image.size == (192, 128) and drawn.image.mode == "RGB"


def test_colours_are_read_row_by_row():
    drawn = scene()
    assert [drawn.colour_at(row=row, column=column) for row, column in TILES] == list(drawn.colours)


def test_every_colour_is_drawn_equally_often_everywhere():
    drawn = [scene(seed).colours for seed in range(600)]
    for tile in range(6):
        counts = [sum(colours[tile] == name for colours in drawn) for name in COLOURS]
        assert sum(counts) == 600 and all(30 <= count <= 95 for count in counts), counts


# ------------------------------------------------------------------------------------------------ the two ways to see
def test_the_picture_is_dots_on_a_ground_that_balances_them():
    """Without daylight or tint: a quarter of the cloth is (1 ± dots) of gray, the rest cancels it."""
    drawn = scene(style=SceneStyle(dots=0.5, tint=0.0, daylight=0.0))
    pixels = np.asarray(drawn.image).astype(int)
    for (row, column), name in zip(TILES, drawn.colours, strict=True):
        cloth = tile_of(pixels, row=row, column=column, side=TILE)
        offset_3 = np.array(COLOURS[name]) - GRAY
        assert np.array_equal(cloth[0, 0], np.floor(GRAY + 0.5 * offset_3))
        assert np.array_equal(cloth[2, 2], np.floor(GRAY - 0.5 * offset_3 / 3))
        assert abs(cloth.mean(axis=(0, 1)) - GRAY).max() <= 1
        assert (cloth == cloth[0, 0]).all(axis=2).mean() == 0.25


@pytest.mark.parametrize("seed", range(4))
def test_inside_a_tile_the_view_is_flat_and_the_crop_is_not(seed):
    """At the seams of tiles the resampling leaves a few levels (docs/world.md); three pixels further in there is nothing."""
    drawn = scene(seed)
    view = seen(drawn.image)
    assert view.shape == (32, 48, 3)
    for (row, column), name in zip(TILES, drawn.colours, strict=True):
        inside = tile_of(view, row=row, column=column, side=VIEW_TILE)[3:-3, 3:-3]
        assert inside.std(axis=(0, 1)).max() < 0.6
        crop = seen(crop_of(drawn.image, row=row, column=column))
        saturated = np.asarray(drawn.image).max() == 255 or np.asarray(drawn.image).min() == 0
        contrast = np.abs(np.array(COLOURS[name]) - GRAY).max() * crop.std(axis=(0, 1)).max() / 127.5
        assert contrast > (10 if saturated else 20)


def test_a_crop_shows_the_colour_of_its_dots():
    """What differs most from the crop's mean, and in which direction, is the dots' colour."""
    drawn = scene(style=SceneStyle(dots=0.5, tint=0.25, daylight=20.0))
    for (row, column), name in zip(TILES, drawn.colours, strict=True):
        crop = seen(crop_of(drawn.image, row=row, column=column)).reshape(-1, 3)
        skew_3 = ((crop - crop.mean(axis=0)) ** 3).mean(axis=0)
        offset_3 = np.array(COLOURS[name]) - GRAY
        strong = np.abs(offset_3) > 100
        assert (np.sign(skew_3) == np.sign(offset_3))[strong].all()


# ------------------------------------------------------------------------------------------------------------ the light
def test_the_light_is_the_asked_tiles_tint_and_random_daylight():
    style = SceneStyle(dots=0.0, tint=0.25, daylight=20.0)
    lights, tints = [], []
    for seed in range(800):
        row, column = TILES[seed % 6]
        drawn = scene(seed, row=row, column=column, style=style)
        lights.append(np.asarray(drawn.image)[0, 0] + 0.5 - GRAY)
        tints.append(0.25 * (np.array(COLOURS[drawn.colour_at(row=row, column=column)]) - GRAY))
        assert np.ptp(np.asarray(drawn.image), axis=(0, 1)).max() == 0
    daylight = np.array(lights) - np.array(tints)
    assert np.abs(daylight.mean(axis=0)).max() < 4 * 20 / 800**0.5
    assert np.abs(daylight.std(axis=0) - 20).max() < 2
    assert np.abs(np.corrcoef(daylight.T)[np.triu_indices(3, 1)]).max() < 0.15


def test_the_other_tiles_say_nothing():
    """Given the asked tile's colour the light does not depend on any other tile's."""
    style = SceneStyle(dots=0.0, tint=0.25, daylight=20.0)
    drawn = [scene(seed, row=0, column=0, style=style) for seed in range(800)]
    light = np.array([np.asarray(s.image)[0, 0, 0] for s in drawn]) - 0.25 * np.array(
        [COLOURS[s.colours[0]][0] for s in drawn]
    )
    for tile in range(1, 6):
        assert abs(np.corrcoef(light, [COLOURS[s.colours[tile]][0] for s in drawn])[0, 1]) < 0.12


def direct_accuracy(style, *, num_scenes=40_000):
    """Accuracy of the exact posterior over colours given the light: sampled from (as at temperature 1), and its best guess."""
    rng = np.random.default_rng(0)
    tints_C3 = style.tint * (np.array(list(COLOURS.values())) - GRAY)
    truth_N = rng.integers(len(tints_C3), size=num_scenes)
    lights_N3 = tints_C3[truth_N] + rng.normal(scale=style.daylight, size=(num_scenes, 3))
    scores_NC = -((lights_N3[:, None] - tints_C3) ** 2).sum(axis=2) / (2 * style.daylight**2)
    posterior_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    posterior_NC /= posterior_NC.sum(axis=1, keepdims=True)
    sampled = posterior_NC[np.arange(num_scenes), truth_N].mean()
    return sampled, (posterior_NC.argmax(axis=1) == truth_N).mean()


def test_the_light_tells_as_much_as_the_window_asks_for():
    sampled, best = direct_accuracy(shipped_style())
    assert 0.27 <= sampled <= 0.31
    assert 0.36 <= best <= 0.45, "however long one trains, this is all the light can tell"


def test_the_bound_is_right_where_it_is_known():
    sampled, best = direct_accuracy(SceneStyle(tint=0.0, daylight=30.0))
    assert sampled == pytest.approx(0.1) and abs(best - 0.1) < 0.01
    assert min(direct_accuracy(SceneStyle(tint=0.25, daylight=0.5))) > 0.999


# ------------------------------------------------------------------------------------------------------------ the boxes
def test_boxes_name_tiles_in_the_tools_frame():
    assert tile_box(row=0, column=0) == (0, 0, 333, 500)
    assert tile_box(row=1, column=2) == (667, 500, 1000, 1000)


def test_the_view_has_the_proportions_of_the_picture():
    assert seen(Image.new("RGB", (192, 128), "red")).shape == (NUM_ROWS * VIEW_TILE, NUM_COLUMNS * VIEW_TILE, 3)
