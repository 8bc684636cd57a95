"""Requests that show before a run whether a server takes token ids and pictures as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import Qwen3VLConfig

from nemo_axpo.types import GenerationRequest, ImageId, RenderedTokens, SamplingParams

_LETTERS = range(64, 72)
"""``a b c d e f g h``, a token each, in the vocabulary of Qwen and of GPT-2 before it. Text made of them and tokenised anew
has fewer tokens."""
_TILES = ((3, 2), (1, 4))
"""Pictures in tiles (height, width) of one language-model token: two shapes that are easily confused."""
_NUM_TOKENS = 2


def start_probes(config: Qwen3VLConfig, *, image_store: Any) -> tuple[GenerationRequest, ...]:
    """One request without pictures, one with two. ``image_store``: has ``add(image)`` and ``features(image_id)``."""
    letters = RenderedTokens(tuple(token for token in _LETTERS if token < config.text_config.vocab_size))
    first, second = (_shown(image_id, config, image_store) for image_id in _pictures(config, image_store))
    sampling = SamplingParams(_NUM_TOKENS)
    return (
        GenerationRequest("check/text", letters, sampling, seed=0),
        GenerationRequest("check/images", letters + first + letters + second + letters, sampling, seed=1),
    )


def _pictures(config: Qwen3VLConfig, image_store: Any) -> list[ImageId]:
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    noise = np.random.default_rng(0)
    sizes = [(height * side, width * side, 3) for height, width in _TILES]
    return [image_store.add(Image.fromarray(noise.integers(0, 256, size, dtype=np.uint8))) for size in sizes]


def _shown(image_id: ImageId, config: Qwen3VLConfig, image_store: Any) -> RenderedTokens:
    """The picture in its wrapping, its placeholders expanded by our own processor."""
    pads = (config.image_token_id,) * image_store.features(image_id).num_tokens
    return RenderedTokens((config.vision_start_token_id, *pads, config.vision_end_token_id), (image_id,))
