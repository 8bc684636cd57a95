"""Geometry of the zoom by hand, and every bad argument as an observation."""

from __future__ import annotations

import asyncio
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted_agent import image_store

from nemo_axpo.data.images import decode_image
from nemo_axpo.tools.image_zoom_in import ImageZoomIn, pixel_box


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        # tile (row 0, column 1) of a 192 × 128 picture: 333 · 0.192 = 63.936 → 64, 667 · 0.192 = 128.064 → 128
        ([333, 0, 667, 500], (192, 128), (64, 0, 128, 64)),
        ([0, 0, 1000, 1000], (192, 128), (0, 0, 192, 128)),
        ([667, 500, 333, 0], (192, 128), (64, 0, 128, 64)),  # swapped corners
        ([-50, -1e9, 500, 1e308], (192, 128), (0, 0, 96, 128)),  # clamped
        ([500, 500, 500, 500], (200, 100), (92, 42, 108, 58)),  # a point: 16 × 16 around (100, 50)
        ([0, 0, 10, 10], (200, 100), (0, 0, 16, 16)),  # 2 × 1 around (1, 0.5), shifted into the image
        ([1200, 1100, 1500, 2000], (200, 100), (184, 84, 200, 100)),  # outside: the nearest corner
        ([495, 0, 510, 1000], (200, 100), (93, 0, 109, 100)),  # 99..102 grows to 16: starts at ceil((201 − 16) / 2)
        ([0, 0, 1000, 1000], (10, 100), (0, 0, 10, 100)),  # the image itself is smaller than the minimum
        ([400, 400, 401, 401], (10, 8), (0, 0, 10, 8)),
        ([0, 500, 1000, 500], (8000, 8000), (0, 3980, 8000, 4020)),  # 8000 / 200 = 40 pixels at least
    ],
)
def test_pixel_box(box, size, expected):
    assert pixel_box(box, size=size, min_side=16) == expected


coordinate = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-2000, 2000)


@given(box=st.lists(coordinate, min_size=4, max_size=4), width=st.integers(16, 5000), height=st.integers(16, 5000))
def test_every_finite_box_gives_a_crop_the_processor_takes(box, width, height):
    left, top, right, bottom = pixel_box(box, size=(width, height), min_side=16)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert min(right - left, bottom - top) >= 16
    sides = sorted((right - left, bottom - top))
    assert sides[1] <= 200 * sides[0] or sides[0] in (width, height)


def gradient() -> Image.Image:
    """Pixel (x, y) is (x, y, 7)."""
    y, x = np.mgrid[0:128, 0:192]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8))


def call(store, images, **arguments):
    session = ImageZoomIn(store, observation="image {index}:").open(images)
    return asyncio.run(session.call({"label": "dot", **arguments}))


def test_the_crop_is_cut_from_the_stored_original_and_named_by_its_index():
    store = image_store()
    images = [store.add(gradient())]
    result = call(store, images, bbox_2d=[333, 500, 667, 1000])
    assert (result.text, result.error) == ("image 1:", "")
    crop = np.asarray(store.image(result.image_ids[0]))
    assert crop.shape == (64, 64, 3) and np.array_equal(crop, np.asarray(gradient())[64:128, 64:128])


def test_a_crop_can_be_zoomed_again():
    store = image_store()
    images = [store.add(gradient())]
    images += call(store, images, bbox_2d=[333, 500, 667, 1000]).image_ids
    result = call(store, images, bbox_2d=[0, 0, 500, 500], img_idx=1.0)
    assert result.text == "image 2:"
    assert store.image(result.image_ids[0]).getpixel((0, 0)) == (64, 64, 7)
    assert store.image(result.image_ids[0]).size == (32, 32)


def stored(store, image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return store.add(decode_image(buffer.getvalue()))


def halves(left, right, *, mode="RGB", size=(200, 100)):
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def centre(store, result):
    image = store.image(result.image_ids[0])
    return image.getpixel((image.width // 2, image.height // 2))


def test_the_index_chooses_among_several_images():
    store = image_store()
    images = [store.add(Image.new("RGB", (50, 40), colour)) for colour in ("red", "lime", "blue")]
    shown = [call(store, images, bbox_2d=[0, 0, 500, 1000], img_idx=index) for index in range(3)]
    assert [centre(store, result) for result in shown] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert {result.text for result in shown} == {"image 3:"}


def test_a_box_means_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # the file's left half is the top when shown
    store = image_store()
    images = [stored(store, halves("red", "blue"), "JPEG", quality=95, exif=exif.tobytes())]
    top, bottom = (call(store, images, bbox_2d=box) for box in ([0, 0, 1000, 400], [0, 600, 1000, 1000]))
    assert store.image(top.image_ids[0]).size == (100, 80)
    assert centre(store, top)[0] > 200 > centre(store, top)[2] and centre(store, bottom)[2] > 200 > centre(store, bottom)[0]


def test_a_crop_of_a_transparent_picture_lies_over_white():
    store = image_store()
    images = [stored(store, halves((0, 0, 0, 0), (0, 0, 255, 255), mode="RGBA"), "PNG")]
    assert centre(store, call(store, images, bbox_2d=[0, 0, 400, 1000])) == (255, 255, 255)
    assert centre(store, call(store, images, bbox_2d=[600, 0, 1000, 1000])) == (0, 0, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_a_crop_of_an_animation_is_of_its_first_picture(kind):
    store = image_store()
    frames = [halves("red", "blue"), halves("lime", "lime")]
    images = [stored(store, frames[0], kind, save_all=True, append_images=frames[1:])]
    red, _, blue = centre(store, call(store, images, bbox_2d=[600, 0, 1000, 1000]))
    assert blue > 240 and red < 15


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 2)])
def test_tiny_pictures_can_be_zoomed_into_and_shown(size):
    store = image_store()
    images = [store.add(Image.new("RGB", size, "red"))]
    for box in ([0, 0, 1000, 1000], [499, 499, 500, 500]):
        result = call(store, images, bbox_2d=box)
        assert result.error == "" and centre(store, result) == (255, 0, 0)
        assert store.features(result.image_ids[0]).num_tokens >= 1


def test_enormous_pictures_keep_their_detail():
    store = image_store()
    enormous = Image.new("RGB", (7680, 4320))
    enormous.putpixel((7000, 4000), (255, 255, 255))
    images = [stored(store, enormous, "PNG", compress_level=1)]
    # 911 · 7.68 = 6996.48 → 6996, 912 · 7.68 = 7004.16 → 7004; 925 · 4.32 = 3996, 927 · 4.32 = 4004.64 → 4005
    crop = store.image(call(store, images, bbox_2d=[911, 925, 912, 927]).image_ids[0])
    assert crop.size == (16, 16) and np.asarray(crop).sum() == 3 * 255  # 8 x 9 pixels grow to one vision token


def test_decompression_bombs_never_become_an_image_of_a_rollout():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, format="PNG")  # 200 million pixels in 25 kB
    assert len(buffer.getvalue()) < 30_000
    with pytest.raises(ValueError, match="cannot be decoded"):
        image_store().add(decode_image(buffer.getvalue()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bbox_2d": [0, 0, math.nan, 5]}, "must be finite"),
        ({"bbox_2d": [0, 0, math.inf, 5]}, "must be finite"),
        ({"bbox_2d": [0, 0, 10**400, 5]}, "must be finite"),
        ({"bbox_2d": [0, 0, 5, 5], "img_idx": -math.inf}, "must be finite"),
        ({"bbox_2d": [0, 0, 5, 5], "img_idx": 1}, "img_idx 1 does not exist: use 0 to 0"),
        ({"bbox_2d": [0, 0, 5, 5], "img_idx": -1}, "img_idx -1 does not exist: use 0 to 0"),
        ({"bbox_2d": [0, 0, 5, 5], "img_idx": 0.5}, "img_idx 0.5 does not exist: use 0 to 0"),
    ],
)
def test_bad_values_are_observations(arguments, words):
    store = image_store()
    result = call(store, [store.add(gradient())], **arguments)
    assert words in result.text and result.error == "bad_arguments" and result.image_ids == ()


def test_without_an_image():
    assert "no image" in call(image_store(), [], bbox_2d=[0, 0, 5, 5]).text


def test_min_side_defaults_to_one_vision_token_and_must_be_positive():
    store = image_store()
    images = [store.add(gradient())]
    assert store.min_side == 16
    assert store.image(call(store, images, bbox_2d=[0, 0, 0, 0]).image_ids[0]).size == (16, 16)
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        ImageZoomIn(store, min_side=0)


def test_every_smallest_crop_has_features():
    store = image_store()
    images = [store.add(gradient())]
    result = call(store, images, bbox_2d=[0, 500, 1000, 500])
    assert store.image(result.image_ids[0]).size == (192, 16)
    assert store.features(result.image_ids[0]).num_tokens >= 1
