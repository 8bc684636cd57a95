"""Images that are counted and not kept: how many tokens a picture takes follows from its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from nemo_axpo.types import ImageId


@dataclass(frozen=True)
class CountedImage:
    """What a renderer asks of an image's features."""

    num_tokens: int
    """Language-model tokens of the image."""


class ImageSizes:
    """Stands for an ImageStore where prompts are only measured: an image's id is its size, no pixel is resized."""

    def __init__(self, image_processor: Any) -> None:
        """``image_processor``: as of an ImageStore."""
        self._processor = image_processor

    def features(self, image_id: ImageId) -> CountedImage:
        """The tokens that ImageStore.features says of an image of that size."""
        width, height = map(int, image_id.split("x"))
        num_patches = self._processor.get_number_of_image_patches(height, width, {})
        return CountedImage(num_patches // self._processor.merge_size**2)


def size_id(image: Image.Image) -> ImageId:
    """The id under which ImageSizes knows an image; one that EXIF turns upright has as many tokens lying down."""
    return f"{image.width}x{image.height}"
