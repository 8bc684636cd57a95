"""``image_zoom_in``: crops a region of an image at its stored resolution (ALGORITHM §8).

The model sees images through its processor, which shrinks large ones; the crop is cut from the stored original, so it
shows detail the first view lost. The crop becomes the next image of the rollout, and the observation tells its index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nemo_axpo.data.images import MAX_ASPECT_RATIO, ImageStore
from nemo_axpo.tools.agent_prompt import tool_schema
from nemo_axpo.types import ImageId, ToolResult

FRAME = 1000
"""Boxes are relative: 0 is the left or top edge of the image, 1000 the right or bottom edge."""
OBSERVATION = "Image {index} is the crop."


class ImageZoomIn:
    """The tool, shared by all rollouts; it has no state of its own."""

    name = "image_zoom_in"

    def __init__(
        self,
        image_store: ImageStore,
        *,
        min_side: int | None = None,
        observation: str = OBSERVATION,
    ) -> None:
        """``min_side``: pixels; smaller boxes are enlarged to it. Default: one vision token of the processor.

        ``observation``: text beside the crop, ``{index}`` is the new image's index.
        """
        self._store = image_store
        self._min_side = image_store.min_side if min_side is None else min_side
        if self._min_side < 1:
            raise ValueError(f"min_side of image_zoom_in must be at least 1 pixel, got {min_side}: leave it unset")
        _check_observation(observation)
        self._observation = observation
        self.schema = tool_schema(self.name)

    def open(self, images: Sequence[ImageId]) -> _ZoomSession:
        """A session on the rollout's images."""
        return _ZoomSession(self._store, images, min_side=self._min_side, observation=self._observation)


def _check_observation(text: str) -> None:
    try:
        text.format(index=0)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the observation of image_zoom_in may hold {{index}} and no other braces; got {text!r} ({error!r}): correct it"
        ) from None


class _ZoomSession:
    def __init__(self, store: ImageStore, images: Sequence[ImageId], *, min_side: int, observation: str) -> None:
        self._store, self._images, self._min_side, self._observation = store, images, min_side, observation

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        box, index = arguments["bbox_2d"], arguments.get("img_idx", 0)
        if not all(_is_finite(value) for value in (*box, index)):
            return ToolResult("bbox_2d and img_idx must be finite numbers", error="bad_arguments")
        if index not in range(len(self._images)):
            return ToolResult(_no_such_image(index, len(self._images)), error="bad_arguments")
        image = self._store.image(self._images[int(index)])
        crop = image.crop(pixel_box(box, size=image.size, min_side=self._min_side))
        return ToolResult(self._observation.format(index=len(self._images)), (self._store.add(crop),))

    async def close(self) -> None:
        pass


def pixel_box(box: Sequence[float], *, size: tuple[int, int], min_side: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of a finite ``[x1, y1, x2, y2]`` in the 0–1000 frame.

    Swapped corners are put in order, values outside the frame are clamped, edges are rounded to the nearest pixel. A
    side shorter than ``min_side`` (or than the aspect ratio allows) grows around its centre and is shifted into the
    image; it is the whole image side where the image itself is smaller. ``size``: width, height in pixels.
    """
    (left, right), (top, bottom) = _edges(box[0], box[2], size[0]), _edges(box[1], box[3], size[1])
    shortest = max(min_side, math.ceil(max(right - left, bottom - top) / MAX_ASPECT_RATIO))
    left, right = _enlarge(left, right, shortest=shortest, length=size[0])
    top, bottom = _enlarge(top, bottom, shortest=shortest, length=size[1])
    return left, top, right, bottom


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _edges(first: float, second: float, length: int) -> tuple[int, int]:
    low, high = sorted(min(max(value, 0), FRAME) for value in (first, second))
    return math.floor(low * length / FRAME + 0.5), math.floor(high * length / FRAME + 0.5)


def _enlarge(low: int, high: int, *, shortest: int, length: int) -> tuple[int, int]:
    if high - low >= shortest:
        return low, high
    side = min(shortest, length)
    start = min(max((low + high - side + 1) // 2, 0), length - side)
    return start, start + side


def _no_such_image(index: float, num_images: int) -> str:
    if not num_images:
        return "there is no image to zoom in on"
    return f"img_idx {index:g} does not exist: use 0 to {num_images - 1}"
