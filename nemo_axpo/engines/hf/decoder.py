"""The text decoder over the KV cache: packed prefill of several rows, one-token decode of the running rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3VLConfig
from transformers.activations import ACT2FN

from nemo_axpo.engines.hf.kv_cache import KvCache
from nemo_axpo.engines.hf.rotary import RotaryTable
from nemo_axpo.engines.hf.weights import DecoderWeights, LayerWeights

LENGTH_STEP = 16
"""Attention reads the cache up to the longest row, rounded up to this many positions."""


@dataclass(frozen=True)
class PrefillChunk:
    """New tokens of A neighbouring cache rows, packed: row a contributes ``counts[a]`` tokens from ``starts[a]`` on."""

    first_row: int
    starts: list[int]
    counts: list[int]
    tokens_N: Tensor
    positions_3N: Tensor
    image_index_M: Tensor
    """Packed indices of the image placeholders."""
    image_features_FMH: Tensor
    """``[1 + DeepStack levels, M, H]``: what replaces the embedding, then what is added after layer 0, 1, …"""


class Decoder:
    """Prefill fills the cache; decode returns logits. All sampling happens after decode."""

    def __init__(
        self,
        config: Qwen3VLConfig,
        *,
        weights: DecoderWeights,
        cache: KvCache,
        rotary: RotaryTable,
        banned_token_ids: tuple[int, ...],
    ) -> None:
        text = config.text_config
        self._weights = weights
        self._cache = cache
        self._rotary = rotary
        self.vocab_size = text.vocab_size
        self.num_heads = self._num_query = text.num_attention_heads
        self._num_kv = text.num_key_value_heads
        self._head_dim = text.head_dim
        self._eps = text.rms_norm_eps
        self._activation = ACT2FN[text.hidden_act]
        self._ban_bias_V = torch.zeros_like(weights.lm_head_VH[:, 0])
        self._ban_bias_V[list(banned_token_ids)] = float("-inf")
        self._rows = torch.arange(cache.num_rows, device=cache.device)
        self._places = torch.arange(cache.num_positions, device=cache.device)

    def decode(self, tokens_R: Tensor, *, lengths_R: Tensor, positions_R: Tensor, max_length: int) -> Tensor:
        """Logits ``[R, V]`` (-inf at banned ids) after feeding one token to each of the first R rows.

        ``lengths_R``: tokens already cached, the place of the new one; ``positions_R``: its rotary position;
        ``max_length``: the largest length.
        """
        num_rows = tokens_R.shape[0]
        num_places = self._round(max_length + 1)
        mask_R1S = self._mask(lengths_R.unsqueeze(1), num_places)
        rows_R, rows = self._rows[:num_rows], slice(0, num_rows)

        def attend(layer: int, query_RHD: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self._cache.write(layer, rows_N=rows_R, positions_N=lengths_R, keys_NHD=keys, values_NHD=values)
            keys, values = self._cache.read(layer, rows=rows, num_positions=num_places)
            return self._attention(query_RHD.unsqueeze(1), keys=keys, values=values, mask_ATS=mask_R1S)

        x_RH = self._forward(F.embedding(tokens_R, self._weights.embedding_VH), self._rotary.text(positions_R), attend)
        x_RH = self._norm(x_RH, self._weights.final_norm_H)
        return torch.addmm(self._ban_bias_V, x_RH, self._weights.lm_head_VH.t())

    def prefill(self, chunk: PrefillChunk) -> None:
        """Computes and stores keys and values of the chunk's tokens."""
        device = self._cache.device
        counts_A, starts_A = torch.tensor(chunk.counts, device=device), torch.tensor(chunk.starts, device=device)
        num_rows, num_new = len(chunk.counts), max(chunk.counts)
        num_places = self._round(max(start + count for start, count in zip(chunk.starts, chunk.counts)))
        steps_T = self._places[:num_new]
        places_AT = starts_A.unsqueeze(1) + steps_T
        packing_N = (steps_T < counts_A.unsqueeze(1)).flatten().nonzero().squeeze(1)
        rows_N = packing_N // num_new + chunk.first_row
        places_N = places_AT.flatten()[packing_N]
        mask_ATS = self._mask(places_AT, num_places)
        rows = slice(chunk.first_row, chunk.first_row + num_rows)

        def attend(layer: int, query_NHD: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self._cache.write(layer, rows_N=rows_N, positions_N=places_N, keys_NHD=keys, values_NHD=values)
            keys, values = self._cache.read(layer, rows=rows, num_positions=num_places)
            padded = query_NHD.new_zeros(num_rows * num_new, *query_NHD.shape[1:]).index_copy_(0, packing_N, query_NHD)
            padded = padded.unflatten(0, (num_rows, num_new))
            return self._attention(padded, keys=keys, values=values, mask_ATS=mask_ATS).index_select(0, packing_N)

        x_NH = F.embedding(chunk.tokens_N, self._weights.embedding_VH)
        if chunk.image_index_M.numel():
            x_NH.index_copy_(0, chunk.image_index_M, chunk.image_features_FMH[0])
        self._forward(x_NH, self._rotary.multimodal(chunk.positions_3N), attend, chunk=chunk)

    def _forward(
        self, x_NH: Tensor, rotation: Tensor, attend: Callable[..., Tensor], *, chunk: PrefillChunk | None = None
    ) -> Tensor:
        for number, layer in enumerate(self._weights.layers):
            x_NH = self._attention_block(layer, x_NH, rotation, partial(attend, number))
            x_NH = self._mlp_block(layer, x_NH)
            if chunk is not None and number + 1 < chunk.image_features_FMH.shape[0]:
                x_NH.index_add_(0, chunk.image_index_M, chunk.image_features_FMH[number + 1])
        return x_NH

    def _attention_block(
        self, layer: LayerWeights, x_NH: Tensor, rotation: Tensor, attend: Callable[..., Tensor]
    ) -> Tensor:
        num_rotated = self._num_query + self._num_kv
        qkv = F.linear(self._norm(x_NH, layer.input_norm_H), layer.qkv, layer.qkv_bias)
        qkv = qkv.unflatten(1, (-1, self._head_dim))
        rotated = F.rms_norm(qkv[:, :num_rotated].float(), (self._head_dim,), None, self._eps) * layer.qk_norm_AD
        rotated = torch.view_as_complex(rotated.unflatten(-1, (-1, 2))) * rotation
        rotated = torch.view_as_real(rotated).flatten(-2).to(x_NH.dtype)
        attended = attend(rotated[:, : self._num_query], rotated[:, self._num_query :], qkv[:, num_rotated:])
        if layer.out_bias is not None:
            x_NH = x_NH + layer.out_bias
        return torch.addmm(x_NH, attended, layer.out.t())

    def _mlp_block(self, layer: LayerWeights, x_NH: Tensor) -> Tensor:
        gate, up = F.linear(self._norm(x_NH, layer.post_norm_H), layer.gate_up).chunk(2, dim=-1)
        return torch.addmm(x_NH, self._activation(gate).mul_(up), layer.down.t())

    def _attention(self, query_ATHD: Tensor, *, keys: Tensor, values: Tensor, mask_ATS: Tensor) -> Tensor:
        """``[A · T, query heads · D]``; the query heads that share a key head are further rows of one product with it.

        ``keys`` and ``values``: ``[A · kv heads, S, D]``; ``mask_ATS``: added to the scores.
        """
        num_rows, num_new = query_ATHD.shape[:2]
        group = self._num_query // self._num_kv
        query = query_ATHD.unflatten(2, (self._num_kv, group)).permute(0, 2, 3, 1, 4)
        query = query.reshape(num_rows * self._num_kv, group * num_new, self._head_dim)
        scores = torch.bmm(query, keys.transpose(1, 2))
        scores.view(num_rows, self._num_kv * group, num_new, -1).add_(mask_ATS.unsqueeze(1))
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        attended = torch.bmm(weights, values).view(num_rows, self._num_kv * group, num_new, self._head_dim)
        return attended.transpose(1, 2).reshape(num_rows * num_new, -1)

    def _mask(self, places_AT: Tensor, num_places: int) -> Tensor:
        """``[A, T, num_places]``: 0 up to the place of the query, -inf behind it."""
        mask = torch.zeros(*places_AT.shape, num_places, device=places_AT.device, dtype=self._cache.dtype)
        return mask.masked_fill_(self._places[:num_places] > places_AT.unsqueeze(2), float("-inf"))

    def _norm(self, x_NH: Tensor, weight_H: Tensor) -> Tensor:
        return F.rms_norm(x_NH, (x_NH.shape[-1],), weight_H, self._eps)

    def _round(self, length: int) -> int:
        return min(-(-length // LENGTH_STEP) * LENGTH_STEP, self._cache.num_positions)
