"""The parts of one decoder layer: megatron's layer, attention and MLP around our norm, rotary and attention core.

The local specification runs on plain torch, on CPU and GPU; :mod:`te_specs` has the one on Transformer Engine.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from nemo_axpo.models.qwen3_vl.attention import PackedAttention, attention_spec
from nemo_axpo.models.qwen3_vl.te_specs import te_block_spec


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm in float32, under sequence parallelism too (megatron's torch norm refuses it)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: object) -> None:
        """``_``: arguments megatron passes to every norm and this one has no use for."""
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # A rank sees its slice of the sequence only: finalize_model_grads sums this gradient over the ranks.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, states: Tensor) -> Tensor:
        """Normalises the last dimension."""
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(states.dtype)


class SwiGLU(torch.nn.Module):
    """``silu(gate) · up`` of the fused first MLP projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_up: Tensor) -> Tensor:
        """``[..., 2 · I]`` to ``[..., I]``."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Megatron's MLP asks every part for what it stores: this one has no weights."""
        return {}


def block_spec(
    config: TransformerConfig, *, core_attention: type[torch.nn.Module] = PackedAttention
) -> TransformerBlockSubmodules:
    """The layers this pipeline stage holds, and the norm after the last one, of the kind ``config.transformer_impl``."""
    if config.transformer_impl == "transformer_engine":
        return te_block_spec(config, core_attention=core_attention, activation=SwiGLU)
    layer = _local_layer_spec(core_attention)
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)


def _local_layer_spec(core_attention: type[torch.nn.Module]) -> ModuleSpec:
    attention = attention_spec(
        qkv=ColumnParallelLinear, output=RowParallelLinear, norm=RMSNorm, core_attention=core_attention
    )
    mlp_parts = MLPSubmodules(linear_fc1=ColumnParallelLinear, activation_func=SwiGLU, linear_fc2=RowParallelLinear)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(module=MLP, submodules=mlp_parts),
            mlp_bda=get_bias_dropout_add,
        ),
    )
