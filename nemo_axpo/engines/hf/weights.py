"""Decoder weights in the layout the sampler computes with, filled by Hugging Face tensor name.

Query, key and value projections are one matrix, gate and up projections another. Within each head the two halves that
rotary embedding pairs, (i, i + D/2), are stored side by side, so that a rotation is one complex product; queries and
keys are permuted alike, which leaves their products unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig

from nemo_axpo.engines.weight_checks import WeightChecks
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied

TEXT_PREFIX = "model.language_model."
VISION_PREFIX = "model.visual."


@dataclass
class LayerWeights:
    """One decoder layer; H hidden, I intermediate, A query heads + key heads, D head_dim."""

    input_norm_H: Tensor
    qkv: Tensor
    """``[(query + 2 · kv heads) · D, H]``."""
    qkv_bias: Tensor | None
    qk_norm_AD: Tensor
    """float32; the query rows carry the attention scale 1/√D."""
    out: Tensor
    """``[H, query heads · D]``."""
    out_bias: Tensor | None
    post_norm_H: Tensor
    gate_up: Tensor
    """``[2 · I, H]``."""
    down: Tensor
    """``[H, I]``."""


@dataclass
class DecoderWeights:
    """The whole text model."""

    embedding_VH: Tensor
    layers: list[LayerWeights]
    final_norm_H: Tensor
    lm_head_VH: Tensor
    """The embedding itself where the checkpoint ties them."""

    @classmethod
    def allocate(cls, config: Qwen3VLConfig, *, device: torch.device, dtype: torch.dtype) -> DecoderWeights:
        """Uninitialised weights of ``config``'s text model."""
        text = config.text_config

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        embedding = empty(text.vocab_size, text.hidden_size)
        lm_head = embedding if is_tied(config) else empty(text.vocab_size, text.hidden_size)
        layers = [_allocate_layer(text, empty) for _ in range(text.num_hidden_layers)]
        return cls(embedding, layers, empty(text.hidden_size), lm_head)


@dataclass(frozen=True)
class Destination:
    """Where one Hugging Face tensor goes, and how it is rearranged on the way."""

    target: Tensor
    rearrange: Callable[[Tensor], Tensor] = lambda tensor: tensor


class WeightLoader:
    """Copies a stream of named tensors into the decoder and the vision tower; the tower is copied as it is."""

    def __init__(self, config: Qwen3VLConfig, *, decoder: DecoderWeights, tower: nn.Module) -> None:
        self._checks = WeightChecks(config)
        self._destinations = _text_destinations(config, decoder)
        for name, tensor in tower.state_dict().items():
            self._destinations[VISION_PREFIX + name] = Destination(tensor)

    @torch.no_grad()
    def load(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """ValueError names a tensor that is unknown, misshapen or missing; the weights are then half replaced."""
        for name, tensor in self._checks.checked(named_tensors):
            destination = self._destinations[name]
            destination.target.copy_(destination.rearrange(tensor.to(destination.target.device)))


def interleave_heads(tensor: Tensor, *, head_dim: int) -> Tensor:
    """Reorders each head's output rows from (0, 1, …, D-1) to (0, D/2, 1, D/2 + 1, …)."""
    halves = tensor.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).reshape(tensor.shape)


def _allocate_layer(text: object, empty: Callable[..., Tensor]) -> LayerWeights:
    num_query, num_kv, head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    hidden, num_projected = text.hidden_size, (num_query + 2 * num_kv) * head_dim
    return LayerWeights(
        input_norm_H=empty(hidden),
        qkv=empty(num_projected, hidden),
        qkv_bias=empty(num_projected) if text.attention_bias else None,
        qk_norm_AD=empty(num_query + num_kv, head_dim).float(),
        out=empty(hidden, num_query * head_dim),
        out_bias=empty(hidden) if text.attention_bias else None,
        post_norm_H=empty(hidden),
        gate_up=empty(2 * text.intermediate_size, hidden),
        down=empty(hidden, text.intermediate_size),
    )


def _text_destinations(config: Qwen3VLConfig, decoder: DecoderWeights) -> dict[str, Destination]:
    destinations = {
        TEXT_PREFIX + "embed_tokens.weight": Destination(decoder.embedding_VH),
        TEXT_PREFIX + "norm.weight": Destination(decoder.final_norm_H),
        LM_HEAD: Destination(decoder.lm_head_VH),
    }
    for number, layer in enumerate(decoder.layers):
        for name, destination in _layer_destinations(config.text_config, layer).items():
            destinations[f"{TEXT_PREFIX}layers.{number}.{name}"] = destination
    return destinations


def _layer_destinations(text: object, layer: LayerWeights) -> dict[str, Destination]:
    head_dim, num_query = text.head_dim, text.num_attention_heads
    sizes = [num_query * head_dim, text.num_key_value_heads * head_dim, text.num_key_value_heads * head_dim]

    def paired(tensor: Tensor) -> Tensor:
        return interleave_heads(tensor, head_dim=head_dim)

    def scaled(tensor: Tensor) -> Tensor:
        return paired(tensor).float() * head_dim**-0.5

    gate, up = layer.gate_up.chunk(2)
    destinations = {
        "input_layernorm.weight": Destination(layer.input_norm_H),
        "post_attention_layernorm.weight": Destination(layer.post_norm_H),
        "self_attn.q_norm.weight": Destination(layer.qk_norm_AD[:num_query], scaled),
        "self_attn.k_norm.weight": Destination(layer.qk_norm_AD[num_query:], paired),
        "self_attn.o_proj.weight": Destination(layer.out),
        "mlp.gate_proj.weight": Destination(gate),
        "mlp.up_proj.weight": Destination(up),
        "mlp.down_proj.weight": Destination(layer.down),
    }
    fused = [("weight", layer.qkv)] + ([("bias", layer.qkv_bias)] if layer.qkv_bias is not None else [])
    for kind, tensor in fused:
        query, key, value = tensor.split(sizes)
        destinations[f"self_attn.q_proj.{kind}"] = Destination(query, paired)
        destinations[f"self_attn.k_proj.{kind}"] = Destination(key, paired)
        destinations[f"self_attn.v_proj.{kind}"] = Destination(value)
    if layer.out_bias is not None:
        destinations["self_attn.o_proj.bias"] = Destination(layer.out_bias)
    return destinations
