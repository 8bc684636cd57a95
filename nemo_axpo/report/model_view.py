"""An image as the model gets it: drawn back from the processed patches, not from the file.

A question answered from a blank or a mangled view looks normal in its PNG; it does not look normal here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from nemo_axpo.types import ImageId


def view_id(image_id: ImageId) -> str:
    """Name under which a run directory keeps the model's view beside the full image."""
    return f"{image_id}.view"


def model_view(features: Any, *, image_processor: Any) -> Image.Image:
    """Undoes patching and normalisation of a Qwen2-VL image processor.

    ``features``: ``pixel_values_PD`` in merge-block order and ``grid_thw``; only the first frame is drawn. The order of
    the axes is that of ``Qwen2VLImageProcessor._preprocess`` (transformers).
    """
    merge, patch = image_processor.merge_size, image_processor.patch_size
    _, height, width = features.grid_thw
    pixels_PD = np.asarray(features.pixel_values_PD, dtype=np.float32)[: height * width]
    blocks = pixels_PD.reshape(height // merge, width // merge, merge, merge, 3, -1, patch, patch)[:, :, :, :, :, 0]
    pixels_HW3 = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(height * patch, width * patch, 3)
    pixels_HW3 = pixels_HW3 * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    return Image.fromarray((pixels_HW3 * 255).round().clip(0, 255).astype(np.uint8))
