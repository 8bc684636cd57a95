"""The image processor of a vLLM server beside ours, which is another implementation.

Runs in vLLM's own environment (launcher_scripts/test_vllm.sh).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.vllm
ONE_LEVEL = 1 / 255 / 0.5
"""Of 255, after normalisation."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An image store, the processor that a server loads from the same checkpoint, and pictures at most 5 to 1."""
    from transformers import AutoImageProcessor

    from nemo_axpo.data.images import ImageStore
    from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor

    directory = tmp_path_factory.mktemp("processor")
    tiny_image_processor().save_pretrained(directory)
    images, random = ImageStore(tiny_image_processor()), np.random.default_rng(0)
    sizes = random.integers(30, 150, (30, 2)).tolist()
    ids = [images.add(Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8))) for w, h in sizes]
    return images, AutoImageProcessor.from_pretrained(directory), ids


def differences(images, processor, picture, ids):
    """Largest difference of any value of each picture's patches."""
    found = []
    for image_id in ids:
        served = processor(images=[picture(image_id)], return_tensors="pt")
        ours = images.features(image_id)
        assert served["image_grid_thw"].tolist() == [list(ours.grid_thw)]
        found.append(float((served["pixel_values"] - ours.pixel_values_PD).abs().max()))
    return torch.tensor(found)


def test_pictures_at_the_models_size_are_seen_alike(pictures):
    images, processor, ids = pictures
    assert type(processor).__name__ != type(images._processor).__name__, "one processor would show nothing"
    assert differences(images, processor, images.model_image, ids).max() < 1e-6


def test_pictures_at_full_size_are_not(pictures):
    images, processor, ids = pictures
    assert (differences(images, processor, images.image, ids) > 0.9 * ONE_LEVEL).float().mean() > 0.5
