"""What transformers' Qwen3-VL of a configuration consists of, without building it; no backend is imported here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

LM_HEAD = "lm_head.weight"


def is_tied(hf_config: Any) -> bool:
    """Whether the output projection is the embedding (transformers keeps the flag at the top or in the text part)."""
    return bool(hf_config.tie_word_embeddings or getattr(hf_config.text_config, "tie_word_embeddings", False))


def parameter_shapes(hf_config: Qwen3VLConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's tensors; nothing is allocated. A tied output projection is among them."""
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(hf_config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
