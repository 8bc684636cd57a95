"""The sizes of a Qwen3-VL that memory depends on, read from its Hugging Face configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionSizes:
    """The vision tower."""

    depth: int
    """Blocks."""
    hidden: int
    intermediate: int
    num_heads: int
    patch_values: int
    """Pixel values of one patch."""
    num_positions: int
    """Rows of the learned position table."""
    patches_per_token: int
    """Patches that merge into one language-model token."""
    num_deepstack: int
    """DeepStack levels: mergers besides the last one, decoder layers that receive features."""


@dataclass(frozen=True)
class ModelSizes:
    """The text model, and the tower in front of it."""

    vocab: int
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_groups: int
    """Key-value heads."""
    head_dim: int
    is_tied: bool
    """Whether the output projection is the embedding."""
    vision: VisionSizes

    @property
    def query_width(self) -> int:
        """Channels of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def group_width(self) -> int:
        """Channels of all keys, or of all values."""
        return self.num_groups * self.head_dim


def model_sizes(hf_config: Any) -> ModelSizes:
    """Sizes of a ``Qwen3VLConfig``."""
    from nemo_axpo.models.qwen3_vl.hf_model import is_tied  # Late: imports transformers.

    text = hf_config.text_config
    return ModelSizes(
        vocab=text.vocab_size,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_groups=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        is_tied=is_tied(hf_config),
        vision=_vision_sizes(hf_config.vision_config),
    )


def _vision_sizes(vision: Any) -> VisionSizes:
    return VisionSizes(
        depth=vision.depth,
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        num_heads=vision.num_heads,
        patch_values=math.prod((vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)),
        num_positions=vision.num_position_embeddings,
        patches_per_token=vision.spatial_merge_size**2,
        num_deepstack=len(vision.deepstack_visual_indexes),
    )
