"""Architectures of the published dense Qwen3-VL checkpoints, so that a job can be planned before a checkpoint is there.

Source: ``config.json`` of the Instruct editions, as copied in public repositories; those of the Thinking editions, which
the recipes train, were not read. docs/models.md names the copies and what the numbers were checked against. A checkpoint
on disk is always preferred (``model.path``).
"""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, dict[str, Any]] = {
    "2b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
    "32b": {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64},
}
_SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
_TIED = ("2b", "4b")
SIZES = tuple(_TEXT)


def published_config(size: str) -> Any:
    """``Qwen3VLConfig`` of one published size (``2b``, ``4b``, ``8b``, ``32b``)."""
    from transformers import Qwen3VLConfig

    tied, tower = size in _TIED, _SMALL_TOWER if size in _TIED else _LARGE_TOWER
    text = {
        **_TEXT[size],
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
        "rope_theta": 5000000, "tie_word_embeddings": tied,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        **tower,
        "num_heads": 16, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
        "num_position_embeddings": 2304, "out_hidden_size": text["hidden_size"],
    }  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
