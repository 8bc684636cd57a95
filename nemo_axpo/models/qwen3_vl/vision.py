"""The vision tower of Qwen3-VL: stills of one grid run as one batch.

transformers' tower runs its attention image by image, which for many small images costs more than the whole text model;
its parameter names are kept, so a checkpoint loads name by name. Source: transformers ``Qwen3VLVisionModel``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN

from nemo_axpo.models.qwen3_vl.inputs import ImageBatch

_NORM_EPS = 1e-6
_ROPE_THETA = 10000.0


class VisionTower(nn.Module):
    """Patches to language-model embeddings, plus one set of features per DeepStack level."""

    def __init__(self, config: Any, *, recomputes_blocks: bool = False) -> None:
        """``config``: the checkpoint's ``vision_config``. ``recomputes_blocks``: keep their inputs alone for backward."""
        super().__init__()
        self.config = config
        self._recomputes_blocks = recomputes_blocks
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, norm_after_merge=False)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(config, norm_after_merge=True) for _ in config.deepstack_visual_indexes
        )

    @classmethod
    def on_meta(cls, config: Any, *, recomputes_blocks: bool = False) -> VisionTower:
        """The tower without memory: the weights are loaded, so none is initialised."""
        with torch.device("meta"):
            return cls(config, recomputes_blocks=recomputes_blocks)

    def forward(self, images: Sequence[ImageBatch]) -> tuple[Tensor, list[Tensor]]:
        """Embeddings ``[tokens, H]`` of all images in order, and per DeepStack level as many features."""
        per_batch = [self._run(batch) for batch in images]
        merged = torch.cat([features for features, _ in per_batch])
        levels = zip(*(deepstack for _, deepstack in per_batch))
        return merged, [torch.cat(level) for level in levels]

    def _run(self, batch: ImageBatch) -> tuple[Tensor, list[Tensor]]:
        config, (_, height, width) = self.config, batch.grid_thw
        states = self.patch_embed(batch.patches_IPD)
        states = states + self._position_embedding(height, width)
        head_dim = config.hidden_size // config.num_heads
        cos, sin = rotary_table(height, width, merge_size=config.spatial_merge_size, head_dim=head_dim)
        rotary = cos.to(states.device), sin.to(states.device)
        deepstack = []
        for number, block in enumerate(self.blocks):
            if self._recomputes_blocks and self.training:
                states = checkpoint(block, states, rotary=rotary, use_reentrant=False, preserve_rng_state=False)
            else:
                states = block(states, rotary=rotary)
            if number in config.deepstack_visual_indexes:
                level = config.deepstack_visual_indexes.index(number)
                deepstack.append(self.deepstack_merger_list[level](states))
        return self.merger(states), deepstack

    def _position_embedding(self, height: int, width: int) -> Tensor:
        """The learned square of positions resampled to ``height`` × ``width`` patches, ``[P, hidden]``."""
        side = int(self.config.num_position_embeddings**0.5)
        index_4P, weight_4P = resampling_table(height, width, merge_size=self.config.spatial_merge_size, side=side)
        table = self.pos_embed.weight
        index_4P, weight_4P = index_4P.to(table.device), weight_4P.to(table.device, table.dtype)
        return (F.embedding(index_4P, table) * weight_4P.unsqueeze(-1)).sum(0)


class PatchEmbed(nn.Module):
    """Linear embedding of a patch; the weight has the shape of the convolution it stands for."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel_size=kernel, stride=kernel)

    def forward(self, patches_IPD: Tensor) -> Tensor:
        """``[I, P, hidden]``: the kernel covers its patch exactly, so the convolution is one matrix product."""
        weight = self.proj.weight
        return F.linear(patches_IPD.to(weight.dtype), weight.flatten(1), self.proj.bias)


class VisionBlock(nn.Module):
    """Pre-norm transformer block without a mask: every patch of an image sees every other."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=_NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, states_IPH: Tensor, *, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """``[I, P, H]`` to the same."""
        states_IPH = states_IPH + self.attn(self.norm1(states_IPH), rotary=rotary)
        return states_IPH + self.mlp(self.norm2(states_IPH))


class VisionAttention(nn.Module):
    """Multi-head attention with two-dimensional rotary positions."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states_IPH: Tensor, *, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """``[I, P, H]`` to the same."""
        num_images, num_patches, hidden = states_IPH.shape
        qkv = self.qkv(states_IPH).view(num_images, num_patches, 3, self._num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        context = F.scaled_dot_product_attention(_rotate(query, rotary), _rotate(key, rotary), value)
        return self.proj(context.transpose(1, 2).reshape(num_images, num_patches, hidden))


class VisionMLP(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self._activation = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        """Last dimension to last dimension."""
        return self.linear_fc2(self._activation(self.linear_fc1(states)))


class PatchMerger(nn.Module):
    """Merges squares of patches into one language-model token each."""

    def __init__(self, config: Any, *, norm_after_merge: bool) -> None:
        super().__init__()
        self._merged = config.hidden_size * config.spatial_merge_size**2
        self._norm_after_merge = norm_after_merge
        self.norm = nn.LayerNorm(self._merged if norm_after_merge else config.hidden_size, eps=_NORM_EPS)
        self.linear_fc1 = nn.Linear(self._merged, self._merged)
        self.linear_fc2 = nn.Linear(self._merged, config.out_hidden_size)

    def forward(self, states_IPH: Tensor) -> Tensor:
        """``[I, P, hidden]`` to ``[I · P / merge², out_hidden]``; a square's patches lie next to each other."""
        if self._norm_after_merge:
            merged = self.norm(states_IPH.reshape(-1, self._merged))
        else:
            merged = self.norm(states_IPH).view(-1, self._merged)
        return self.linear_fc2(F.gelu(self.linear_fc1(merged)))


@functools.lru_cache(maxsize=1024)
def resampling_table(height: int, width: int, *, merge_size: int, side: int) -> tuple[Tensor, Tensor]:
    """Bilinear resampling of a ``side``² table: for each patch four entries and their weights, both ``[4, P]``."""
    rows, columns = torch.linspace(0, side - 1, height), torch.linspace(0, side - 1, width)
    low_r, low_c = rows.int(), columns.int()
    high_r, high_c = (low_r + 1).clamp(max=side - 1), (low_c + 1).clamp(max=side - 1)
    part_r, part_c = rows - low_r, columns - low_c
    index = [r[:, None] * side + c for r in (low_r, high_r) for c in (low_c, high_c)]
    weight = [r[:, None] * c for r in (1 - part_r, part_r) for c in (1 - part_c, part_c)]
    order = _merge_order(height, width, merge_size=merge_size)
    return torch.stack(index).flatten(1)[:, order].long(), torch.stack(weight).flatten(1)[:, order]


@functools.lru_cache(maxsize=1024)
def rotary_table(height: int, width: int, *, merge_size: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines float32 ``[P, head_dim]``: half of the frequencies turn with the row, half with the column."""
    inverse = 1.0 / _ROPE_THETA ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2))
    order = _merge_order(height, width, merge_size=merge_size)
    rows, columns = torch.div(order, width, rounding_mode="floor"), order % width
    angles = torch.cat([rows[:, None] * inverse, columns[:, None] * inverse], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _merge_order(height: int, width: int, *, merge_size: int) -> Tensor:
    """Row-major patch number of each patch in merge-block order, int64 ``[P]``."""
    grid = torch.arange(height * width).view(height // merge_size, merge_size, width // merge_size, merge_size)
    return grid.transpose(1, 2).flatten()


def _rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates ``[I, heads, P, D]`` in float32."""
    wide, (cos, sin) = states.float(), rotary
    low, high = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-high, low), dim=-1) * sin).to(states.dtype)
