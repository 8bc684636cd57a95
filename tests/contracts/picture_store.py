"""An image store whose pictures are real: servers get them as PNG and process them themselves."""

from __future__ import annotations

import numpy as np
from PIL import Image
from tiny_engine_model import MERGE, PATCH, render

from nemo_axpo.data.images import ImageFeatures, ImageStore, build_image_processor
from nemo_axpo.types import RenderedTokens


def tiny_processor():
    """Patches of the tiny model; no picture of the tests is resized."""
    return build_image_processor(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2,
        size={"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 4096 * (PATCH * MERGE) ** 2},
    )  # fmt: skip


class PictureStore:
    """Pictures by a name of the test's choice; the interface of FakeImageStore, and the pictures themselves."""

    def __init__(self) -> None:
        self._store = ImageStore(tiny_processor())
        self._ids: dict[str, str] = {}

    def add(self, name: str, *, height: int = 4, width: int = 4) -> str:
        """``height`` × ``width`` patches, both even, of noise."""
        pixels = np.random.default_rng(len(self._ids)).integers(0, 256, (height * PATCH, width * PATCH, 3), np.uint8)
        self._ids[name] = self._store.add(Image.fromarray(pixels))
        return name

    def features(self, name: str) -> ImageFeatures:
        return self._store.features(self._ids[name])

    def image(self, name: str) -> Image.Image:
        return self._store.image(self._ids[name])

    def model_image(self, name: str) -> Image.Image:
        return self._store.model_image(self._ids[name])

    def render(self, *pieces: int | str) -> RenderedTokens:
        return render(pieces, store=self)
