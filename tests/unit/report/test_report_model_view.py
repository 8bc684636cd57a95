"""The model's view is drawn back from the patches exactly."""

import numpy as np
from PIL import Image

from nemo_axpo.report.model_view import model_view


def test_patches_of_the_real_processor_give_the_image_back():
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil as processor_class,
        )
    except ImportError:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as processor_class
    processor = processor_class(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=256 * 256)
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 48, 3), dtype=np.uint8)
    batch = processor(images=[Image.fromarray(pixels)], return_tensors="np")

    class Features:
        pixel_values_PD, grid_thw = batch["pixel_values"], tuple(int(n) for n in batch["image_grid_thw"][0])

    view = np.asarray(model_view(Features, image_processor=processor)).astype(int)
    assert view.shape == (32, 48, 3)
    assert abs(view - pixels).max() <= 1
