"""Causal self-attention of packed rows: projections see every shared token once, attention sees whole rows."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from nemo_axpo.models.qwen3_vl.inputs import PackedRows, PaddedRows, RowBlock, ThdRows
from nemo_axpo.models.qwen3_vl.mrope import rotate
from nemo_axpo.models.qwen3_vl.thd_attention import thd_attention


class PackedSelfAttention(SelfAttention):
    """Megatron's self-attention (its parameters, tensor and sequence parallelism) over :class:`PackedRows`.

    Megatron's own forward takes packed sequences only with Transformer Engine, and there its rotary embedding counts
    positions from each row's start, which multimodal positions do not.
    """

    def forward(
        self,
        hidden_states: Tensor,
        *,
        rotary_pos_emb: tuple[Tensor, Tensor],
        packed_seq_params: PackedRows,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``[T, 1, H]`` (``[T / tp, 1, H]`` under sequence parallelism) to the same; the second output is no bias.

        ``_``: what megatron's layer passes to every attention and a training step does not use.
        """
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        query, key = rotate(query, rotary=rotary_pos_emb), rotate(key, rotary=rotary_pos_emb)
        attend = functools.partial(self.core_attention, rows=packed_seq_params)
        if self.checkpoint_core_attention and self.training:
            return self.linear_proj(tensor_parallel.checkpoint(attend, False, query, key, value))
        return self.linear_proj(attend(query, key, value))


def attention_spec(
    *,
    qkv: type[torch.nn.Module],
    output: type[torch.nn.Module],
    norm: type[torch.nn.Module],
    core_attention: type[torch.nn.Module],
) -> ModuleSpec:
    """A decoder layer's attention. ``qkv``, ``output``: its projections; ``norm``: of queries and of keys."""
    parts = SelfAttentionSubmodules(
        linear_qkv=qkv, core_attention=core_attention, linear_proj=output, q_layernorm=norm, k_layernorm=norm
    )
    return ModuleSpec(module=PackedSelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=parts)


class PackedAttention(torch.nn.Module):
    """Scaled dot-product attention of packed tokens, in the form in which their rows come."""

    def __init__(self, *, softmax_scale: float | None, **_: Any) -> None:
        """``_``: what megatron passes to every core attention."""
        super().__init__()
        self._scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, rows: PackedRows) -> Tensor:
        """Query ``[T, 1, heads, D]``, key and value ``[T, 1, groups, D]`` to ``[T, 1, heads · D]``."""
        if isinstance(rows, ThdRows):
            return thd_attention(query, key, value, rows=rows, scale=self._scale)
        return self._attend_blocks(query, key, value, rows=rows)

    def _attend_blocks(self, query: Tensor, key: Tensor, value: Tensor, *, rows: PaddedRows) -> Tensor:
        contexts = [self._attend(query, key, value, block=block) for block in rows.blocks]
        return torch.cat(contexts).index_select(0, rows.source_T).unsqueeze(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *, block: RowBlock) -> Tensor:
        """Context of the block's queries, ``[B · Q, heads · D]``."""
        mask = None if block.mask_B1QS is None else block.mask_B1QS.to(query.dtype)
        context = F.scaled_dot_product_attention(
            _unfold(query, block.query_BQ),
            _unfold(key, block.key_BS),
            _unfold(value, block.key_BS),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
            enable_gqa=True,
        )
        return context.transpose(1, 2).reshape(block.query_BQ.numel(), -1)


def _unfold(states: Tensor, token_BS: Tensor) -> Tensor:
    """Packed ``[T, 1, heads, D]`` to rows ``[B, heads, S, D]``; a shared token's gradient is summed over its rows."""
    num_tokens, _, num_heads, head_dim = states.shape
    flat = states.reshape(num_tokens, -1).index_select(0, token_BS.flatten())
    return flat.view(*token_BS.shape, num_heads, head_dim).transpose(1, 2)
