"""Images: one stored copy by content, processed once, and a clear error for every image that cannot be one."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_axpo.data.images import ImageStore, build_image_processor, decode_image, load_image_processor, upright_rgb
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor


class CountingProcessor:
    """Counts the images of every call to the processor."""

    def __init__(self, processor):
        self.processor, self.calls = processor, []

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, *, images, **options):
        self.calls.append(len(images))
        return self.processor(images=images, **options)


def store():
    return ImageStore(CountingProcessor(tiny_image_processor()))


def noise(width, height, *, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------ identity
def test_equal_pixels_are_one_image():
    images = store()
    first = images.add(noise(48, 32))
    again = images.add(decode_image(encoded(noise(48, 32), "PNG")))
    assert first == again and len(images) == 1 and first in images
    assert len(first) == 64 and set(first) <= set("0123456789abcdef")


def test_other_pixels_or_another_shape_are_another_image():
    images = store()
    flat = Image.new("RGB", (4, 9), "red")
    ids = {images.add(flat), images.add(Image.new("RGB", (9, 4), "red")), images.add(Image.new("RGB", (4, 9), "blue"))}
    assert len(ids) == len(images) == 3


def test_the_id_is_the_same_in_every_process():
    red = store().add(Image.new("RGB", (2, 1), (255, 0, 0)))
    assert red == hashlib.sha256(b"2x1" + bytes([255, 0, 0, 255, 0, 0])).hexdigest()


def test_an_unknown_image_says_how_it_gets_there():
    with pytest.raises(KeyError, match=r"image abc is not in the store: add\(\) it, or keep its id in retain\(\)"):
        store().image("abc")


# ------------------------------------------------------------------------------------------------------ conversion
def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees
    left_red = Image.new("RGB", (40, 20), "blue")
    left_red.paste("red", (0, 0, 20, 20))
    shown = upright_rgb(decode_image(encoded(left_red, "JPEG", quality=95, exif=exif.tobytes())))
    assert shown.size == (20, 40)
    top, bottom = shown.getpixel((10, 5)), shown.getpixel((10, 35))
    assert top[0] > 200 and top[2] < 50 and bottom[2] > 200 and bottom[0] < 50


def test_broken_exif_does_not_hide_the_image():
    image = decode_image(encoded(Image.new("RGB", (6, 4), "white"), "JPEG", exif=b"Exif\0\0garbage"))
    assert upright_rgb(image).size == (6, 4)


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 255))
    assert [upright_rgb(clear).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]
    palette = decode_image(encoded(Image.new("P", (1, 1), 0), "PNG", transparency=0))
    assert upright_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_deep_gray_is_scaled_not_saturated():
    deep = decode_image(encoded(Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)), "PNG"))
    assert [upright_rgb(deep).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_an_elongated_image_is_refused():
    images = store()
    images.add(Image.new("RGB", (200, 1)))
    with pytest.raises(ValueError, match="at most 200 times the shorter one; got 201 x 1 pixels: crop it"):
        images.add(Image.new("RGB", (201, 1)))


# -------------------------------------------------------------------------------------------------------- features
def test_features_are_those_of_the_processor_and_computed_once():
    images = store()
    image = noise(96, 64)
    image_id = images.add(image)
    features = images.features(image_id)
    expected = tiny_image_processor()(images=[image], return_tensors="pt")
    assert torch.equal(features.pixel_values_PD, expected["pixel_values"].float())
    assert features.grid_thw == (1, 4, 6) and features.num_tokens == 6
    assert images.features(image_id) is features and images._processor.calls == [1]


def test_several_images_are_processed_in_one_call():
    images = store()
    ids = [images.add(noise(48, 32)), images.add(noise(32, 32, seed=1)), images.add(noise(96, 64, seed=2))]
    images.features(ids[0])
    images.prepare([*ids, ids[2]])
    assert images._processor.calls == [1, 2]
    alone = store()
    for image_id in ids:
        alone.add(images.image(image_id))
        assert torch.equal(images.features(image_id).pixel_values_PD, alone.features(image_id).pixel_values_PD)
        assert images.features(image_id).grid_thw == alone.features(image_id).grid_thw
    assert images._processor.calls == [1, 2]


def test_retain_forgets_pixels_and_features_of_the_rest():
    images = store()
    kept, dropped = images.add(noise(48, 32)), images.add(noise(32, 32))
    images.prepare([kept, dropped])
    images.retain([kept, "never seen"])
    assert kept in images and dropped not in images
    assert images.features(kept).num_tokens == 6 and images._processor.calls == [2]
    with pytest.raises(KeyError):
        images.features(dropped)


def test_one_vision_token_is_patch_times_merge_wide():
    assert store().min_side == 16


# -------------------------------------------------------------------------------------------------- broken images
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_whole_images_decode(kind, tmp_path):
    data = encoded(noise(48, 32), kind)
    (tmp_path / "image").write_bytes(data)
    assert decode_image(data).size == decode_image(tmp_path / "image").size == (48, 32)


def bomb(side=30_000, *, extra=()):
    """A PNG of a few bytes that says it has 900 million pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        encoded(noise(48, 32), "PNG")[:-300],
        encoded(noise(48, 32), "JPEG")[:200],
        encoded(noise(48, 32), "WEBP")[:300],
        bomb(),
        bomb(2, extra=[(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))]),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    ],
    ids=["empty", "text", "truncated png", "truncated jpeg", "truncated webp", "decompression bomb", "bomb in a text", "program"],
)
def test_a_broken_image_is_refused_where_it_is_read(data):
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("ignore")
        decode_image(data)
    message = str(caught.value)
    assert f"image {len(data)} bytes cannot be decoded" in message
    assert message.endswith("replace it with a whole PNG, JPEG or WebP file")


@pytest.mark.parametrize("pillows_bound", [None, 10_000])
def test_the_bound_on_pixels_is_our_own(pillows_bound, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_bound)
    with pytest.raises(ValueError, match="11586 x 11586 pixels, at most 134217728 are read|exceeds limit of 20000 pixels"):
        decode_image(bomb(11_586))
    if pillows_bound:
        with pytest.warns(Image.DecompressionBombWarning):
            assert decode_image(encoded(noise(120, 120), "PNG")).size == (120, 120)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_pictures(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    decoded = upright_rgb(decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:])))
    red, green, blue = decoded.getpixel((5, 5))
    assert decoded.size == (20, 10) and red > 240 and green < 15 and blue < 15


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ValueError, match="gone.png does not exist: correct its path in the data file"):
        decode_image(tmp_path / "gone.png")
    (tmp_path / "half.png").write_bytes(encoded(noise(48, 32), "PNG")[:-300])
    with pytest.raises(ValueError, match=r"image .*half\.png cannot be decoded"):
        decode_image(str(tmp_path / "half.png"))


# ------------------------------------------------------------------------------------------------------- processor
def test_the_processor_of_a_checkpoint_is_the_one_that_was_saved(tmp_path):
    saved = tiny_image_processor()
    saved.save_pretrained(tmp_path)
    image = noise(192, 128)
    loaded = load_image_processor(tmp_path)
    expected, got = (p(images=[image], return_tensors="pt") for p in (saved, loaded))
    assert torch.equal(expected["pixel_values"], got["pixel_values"])
    assert expected["image_grid_thw"].tolist() == got["image_grid_thw"].tolist() == [[1, 4, 6]]


def test_the_pixel_budget_bounds_both_ways():
    processor = build_image_processor(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )
    grids = processor(images=[noise(16, 16), noise(640, 640)], return_tensors="pt")["image_grid_thw"].tolist()
    assert grids == [[1, 4, 4], [1, 8, 8]]


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"size": {}}'], ids=["missing", "broken", "a list", "no patch"])
def test_a_checkpoint_without_a_readable_processor_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match="needs its image processor's preprocessor_config.json.*copy it from the"):
        load_image_processor(tmp_path)
