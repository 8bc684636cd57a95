"""Pictures as servers get them: our processor has resized them, so that no other one does it differently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_axpo.data.images import ImageStore, build_image_processor

SIDE = 16
"""Pixels of a token."""


def store():
    return ImageStore(
        build_image_processor(
            patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
        )
    )


def noise(width, height):
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 48), (64, 48)),  # whole tokens within the budget: as it is
        ((70, 50), (64, 48)),  # rounded to tokens
        ((5, 90), (16, 144)),  # a side below a token
        ((10, 12), (32, 48)),  # enlarged to 32² pixels or more
        ((400, 300), (96, 80)),  # reduced to 96² pixels or fewer
    ],
)
def test_the_picture_has_its_final_size(size, expected):
    images = store()
    image_id = images.add(noise(*size))
    assert images.model_image(image_id).size == expected and images.image(image_id).size == size


def test_its_patches_are_those_of_the_original():
    images = store()
    for number, size in enumerate(np.random.default_rng(0).integers(4, 300, (40, 2)).tolist()):
        image_id = images.add(noise(*size))
        ours, again = images.features(image_id), images.features(images.add(images.model_image(image_id)))
        assert ours.grid_thw == again.grid_thw, (number, size)
        assert torch.equal(ours.pixel_values_PD, again.pixel_values_PD), (number, size)


def test_what_would_be_resized_again_stays_what_it_is():
    """33 x 6567 pixels round to 32 x 6560, more than 200 to 1."""
    processor = build_image_processor(
        patch_size=16, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 10**7}
    )
    images = ImageStore(processor)
    image_id = images.add(Image.new("RGB", (33, 6567)))
    assert images.features(image_id).grid_thw == (1, 410, 2) and images.model_image(image_id).size == (33, 6567)
