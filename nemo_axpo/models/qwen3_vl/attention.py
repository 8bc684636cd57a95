"""Causal self-attention of packed rows: projections see every shared token once, the attention itself sees whole rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from nemo_axpo.models.qwen3_vl.inputs import PackedRows
from nemo_axpo.models.qwen3_vl.mrope import rotate


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
        return self.linear_proj(self.core_attention(query, key, value, rows=packed_seq_params))


class PackedAttention(torch.nn.Module):
    """Scaled dot-product attention of packed tokens.

    Rows are padded on the right, so under the causal mask no token that counts ever sees padding: no mask is needed.
    """

    def __init__(self, *, softmax_scale: float | None, **_: Any) -> None:
        """``_``: what megatron passes to every core attention."""
        super().__init__()
        self._scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, rows: PackedRows) -> Tensor:
        """Query ``[T, 1, heads, D]``, key and value ``[T, 1, groups, D]`` to ``[T, 1, heads · D]``."""
        shared = query.shape[2] // key.shape[2]
        key, value = (states.repeat_interleave(shared, dim=2) if shared > 1 else states for states in (key, value))
        unfolded = [_unfold(states, rows=rows) for states in (query, key, value)]
        context = F.scaled_dot_product_attention(*unfolded, is_causal=True, scale=self._scale)
        context = context.transpose(1, 2).reshape(rows.token_BS.numel(), -1)
        return context.index_select(0, rows.source_T).unsqueeze(1)


def _unfold(states: Tensor, *, rows: PackedRows) -> Tensor:
    """Packed ``[T, 1, heads, D]`` to rows ``[B, heads, S, D]``; the gradient of a shared token is summed over its rows."""
    num_tokens, _, num_heads, head_dim = states.shape
    flat = states.reshape(num_tokens, -1).index_select(0, rows.token_BS.flatten())
    return flat.view(*rows.token_BS.shape, num_heads, head_dim).transpose(1, 2)
