"""Images stored once by content hash, with the features the vision tower reads.

Records carry image ids only. N rollouts of a question share one stored image and one processed tensor, however often the
image is shown; frameworks which copy pixels with every row run out of host memory on image-heavy batches.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from nemo_axpo.types import ImageId

_PROCESSOR_SETTINGS = (
    "patch_size", "merge_size", "temporal_patch_size", "size", "min_pixels", "max_pixels", "image_mean", "image_std",
    "resample", "rescale_factor", "do_resize", "do_rescale", "do_normalize", "do_convert_rgb",
)  # fmt: skip
MAX_PIXELS = 2**27
"""More are refused before they are decoded: 134 million, four times an 8K picture. Pillow's own bound is a global that other
libraries take off."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""JPEG reads what phones write (MPO) too. Others are rare in data, and among them are formats that start a program to be decoded (EPS)."""
MAX_ASPECT_RATIO = 200
"""Qwen2-VL's ``smart_resize`` refuses images more elongated than this."""


@dataclass(frozen=True)
class ImageFeatures:
    """Input of the vision tower for one image."""

    pixel_values_PD: torch.Tensor
    """[P, D] float32: P patches in the processor's merge-block order, D = channels · temporal patch · patch²."""
    grid_thw: tuple[int, int, int]
    """Patches in time, height, width; P = t·h·w."""
    num_tokens: int
    """Language-model tokens of the image: P / merge_size²."""


class ImageStore:
    """Content-addressed images of the questions and tool results in flight."""

    def __init__(self, image_processor: Any) -> None:
        """``image_processor``: a Qwen2-VL image processor of transformers (decides resize, normalisation, patches)."""
        self._processor = image_processor
        self._images: dict[ImageId, Image.Image] = {}
        self._features: dict[ImageId, ImageFeatures] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._images

    @property
    def min_side(self) -> int:
        """Pixels of the side of one language-model token: images smaller than this are enlarged by the processor."""
        return int(self._processor.patch_size * self._processor.merge_size)

    def add(self, image: Image.Image) -> ImageId:
        """Stores an image as :func:`upright_rgb` and returns its id; equal pixels give equal ids.

        ValueError for an image that is too elongated for the image processor.
        """
        check_aspect_ratio(image)
        rgb = upright_rgb(image)
        image_id = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()
        self._images.setdefault(image_id, rgb)
        return image_id

    def image(self, image_id: ImageId) -> Image.Image:
        """The stored RGB image at full resolution. KeyError for an id that was never added or was dropped."""
        try:
            return self._images[image_id]
        except KeyError:
            raise KeyError(f"image {image_id[:12]} is not in the store: add() it, or keep its id in retain()") from None

    def model_image(self, image_id: ImageId) -> Image.Image:
        """The image at the size at which the vision tower sees it: no processor resizes it any more.

        Implementations of one processor resize differently (by one level of 255 and more), so what a server processes
        itself is sent like this. An image that would be resized again, as are some of the most elongated, stays what it is.
        """
        image, (_, rows, columns) = self.image(image_id), self.features(image_id).grid_thw
        side = self._processor.patch_size
        width, height = columns * side, rows * side
        try:
            is_final = self._processor.get_number_of_image_patches(height, width, {}) == rows * columns
        except ValueError:  # beyond MAX_ASPECT_RATIO, by rounding
            is_final = False
        return image.resize((width, height), resample=self._processor.resample) if is_final else image

    def features(self, image_id: ImageId) -> ImageFeatures:
        """Processed patches of one image, computed at the first request."""
        if image_id not in self._features:
            self.prepare([image_id])
        return self._features[image_id]

    def prepare(self, image_ids: Sequence[ImageId]) -> None:
        """Processes several images in one call of the processor (its fixed cost is larger than a small image's)."""
        missing = [i for i in dict.fromkeys(image_ids) if i not in self._features]
        if not missing:
            return
        batch = self._processor(images=[self.image(i) for i in missing], return_tensors="pt")
        pixels, grids = batch["pixel_values"].float(), batch["image_grid_thw"].tolist()
        start = 0
        for image_id, (t, h, w) in zip(missing, grids, strict=True):
            stop = start + t * h * w
            tokens = t * h * w // self._processor.merge_size**2
            self._features[image_id] = ImageFeatures(pixels[start:stop].clone(), (t, h, w), tokens)
            start = stop

    def retain(self, image_ids: Iterable[ImageId]) -> None:
        """Forgets every image that is not named."""
        kept = set(image_ids)
        self._images = {i: image for i, image in self._images.items() if i in kept}
        self._features = {i: features for i, features in self._features.items() if i in kept}

    def drop(self, image_ids: Iterable[ImageId]) -> None:
        """Forgets the images that are named; ids that are not there are left alone."""
        for image_id in image_ids:
            self._images.pop(image_id, None)
            self._features.pop(image_id, None)


def check_aspect_ratio(image: Image.Image) -> None:
    """ValueError for an image that is too elongated for the image processor."""
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(
            f"the longer side of an image may be at most {MAX_ASPECT_RATIO} times the shorter one; got "
            f"{image.width} x {image.height} pixels: crop it, or drop the question from the data"
        )


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB as a viewer shows it: EXIF rotation applied, transparency over white, 16-bit gray in 8 bits.

    Pillow's own conversion would show transparent pixels in the colour that happens to lie under them, mostly black, and
    16-bit gray as white.
    """
    image = _upright(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, OSError):  # EXIF that no viewer can read either
        return image


def decode_image(source: bytes | str | Path) -> Image.Image:
    """Decodes image bytes or a file completely (not lazily), so that a broken image fails where it is read.

    Of an animation or a file of several pictures: the first. Raises ValueError naming the source, what is wrong with it and
    the cure.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
            return image.copy()  # which decodes it
    except FileNotFoundError:
        raise ValueError(f"image {name} does not exist: correct its path in the data file") from None
    except Exception as error:  # what a broken file makes a decoder raise, no list of it is complete
        raise ValueError(
            f"image {name} cannot be decoded ({error}): replace it with a whole PNG, JPEG or WebP file"
        ) from error


def load_image_processor(checkpoint: str | Path) -> Any:
    """The Qwen2-VL image processor of a checkpoint. ValueError where its file is missing or broken."""
    file = Path(checkpoint) / "preprocessor_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        known = {name: settings[name] for name in _PROCESSOR_SETTINGS if name in settings}
        if not {"patch_size", "merge_size"} <= set(known):
            raise ValueError("patch_size or merge_size is missing")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"a checkpoint needs its image processor's {file.name}; {file} cannot be read ({error}): copy it from the "
            "model's original checkpoint"
        ) from error
    return build_image_processor(**known)


def build_image_processor(**settings: Any) -> Any:
    """A Qwen2-VL image processor that needs no torchvision (transformers 5.x and 4.57)."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    except ImportError:
        return _build_processor_4(**settings)
    return Qwen2VLImageProcessorPil(**settings)


def _build_processor_4(**settings: Any) -> Any:
    """transformers 4.57: the numpy processor has the plain name, and overlooks ``size`` unless the bounds come singly."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    size = settings.get("size") or {}
    bounds = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    given = {name: value for name, value in settings.items() if value is not None}
    return Qwen2VLImageProcessor(**{name: bound for name, bound in bounds.items() if bound is not None} | given)
