"""A tiny real Qwen3-VL: every mechanism of the large ones (vision tower, DeepStack, interleaved M-RoPE, QK-norm, GQA)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from nemo_axpo.data.images import build_image_processor
from nemo_axpo.data.vocabulary import SpecialTokens

PATCH, MERGE = 8, 2
HEAD_DIM = 24
"""Of the decoder; vLLM's attention kernel for CPUs takes none below 32."""
NUM_LAYERS = 3
"""Of the decoder."""
VIEW_PIXELS = (3 * PATCH * MERGE) * (2 * PATCH * MERGE)
"""Pixel budget of one image: 3 × 2 tokens, so a tile of the embedded world is one token."""


def tiny_config(
    tokenizer: Any, *, vocab_size: int, head_dim: int = HEAD_DIM, num_layers: int = NUM_LAYERS
) -> Qwen3VLConfig:
    """Configuration of the quickstart's model (0.3–0.5M parameters, tied embeddings). ``head_dim``: a multiple of 8."""
    third = head_dim // 6
    special = SpecialTokens.from_tokenizer(tokenizer)
    text = {
        "vocab_size": vocab_size, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": num_layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "default", "mrope_section": [head_dim // 2 - 2 * third, third, third], "mrope_interleaved": True},
        "bos_token_id": special.endoftext, "eos_token_id": special.im_end, "pad_token_id": special.endoftext,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 96,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=special.image_pad,
        video_token_id=special.video_pad,
        vision_start_token_id=special.vision_start,
        vision_end_token_id=special.vision_end,
    )


def save_tiny_checkpoint(
    path: str | Path,
    *,
    tokenizer: Any,
    vocab_size: int,
    seed: int,
    head_dim: int = HEAD_DIM,
    num_layers: int = NUM_LAYERS,
) -> Path:
    """Writes an ordinary HF checkpoint with seeded random weights: config, safetensors, tokenizer, image processor."""
    path = Path(path)
    config = tiny_config(tokenizer, vocab_size=vocab_size, head_dim=head_dim, num_layers=num_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        _initialise(model)
    disable_progress_bar()  # one file of a megabyte
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    tiny_image_processor().save_pretrained(path)
    return path


def tiny_image_processor() -> Any:
    """The real Qwen2-VL image processor at the tiny patch size and pixel budget."""
    return build_image_processor(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": VIEW_PIXELS},
    )


@torch.no_grad()
def _initialise(model: torch.nn.Module) -> None:
    """Fan-in initialisation: at this width the library's std of 0.02 leaves attention flat for hundreds of steps."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "embed" not in name:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif parameter.ndim >= 2:
            parameter.normal_(std=parameter.shape[-1] ** -0.5 if "patch_embed" in name else 0.1)
