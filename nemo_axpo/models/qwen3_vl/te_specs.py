"""The decoder layer on Transformer Engine: norm and projection fused, as megatron's ``TESpecProvider`` composes them.

The two norms of a layer become parameters of the projections behind them::

    input_layernorm.weight      self_attention.linear_qkv.layer_norm_weight
    pre_mlp_layernorm.weight    mlp.linear_fc1.layer_norm_weight

Everywhere outside of the modules (Hugging Face mapping, checkpoints) the names on the left are used, so that what one
kind of layers wrote the other reads. Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from nemo_axpo.extras import require_extra
from nemo_axpo.models.qwen3_vl.attention import attention_spec

FUSED_NAMES = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""How names of fused parameters begin, within a layer, and the plain names."""


@dataclass(frozen=True)
class TransformerEngineParts:
    """The classes a layer is built of."""

    norm_linear: type[torch.nn.Module]
    """Column-parallel projection with the norm in front of it: ``weight`` and ``layer_norm_weight``."""
    row_linear: type[torch.nn.Module]
    """Row-parallel projection: ``weight``."""
    norm: type[torch.nn.Module]
    """Of queries, of keys, and after the last layer: ``weight``."""


def transformer_engine_parts() -> TransformerEngineParts:
    """Megatron's wrappers of Transformer Engine's modules; MissingExtraError where it is not installed."""
    require_extra("te")
    from megatron.core.extensions import transformer_engine as te

    return TransformerEngineParts(te.TELayerNormColumnParallelLinear, te.TERowParallelLinear, te.TENorm)


def te_block_spec(
    config: TransformerConfig,
    *,
    core_attention: type[torch.nn.Module],
    activation: type[torch.nn.Module],
    parts: TransformerEngineParts | None = None,
) -> TransformerBlockSubmodules:
    """The layers this pipeline stage holds, and the norm after the last one.

    ``core_attention``: attention over packed rows, between the projections. ``activation``: between the two projections
    of the MLP. ``parts``: None for Transformer Engine's.
    """
    parts = parts or transformer_engine_parts()
    layer = _layer_spec(parts, core_attention=core_attention, activation=activation)
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=parts.norm)


def plain_name(name: str) -> str:
    """Name of a parameter in the local layers: ``….linear_qkv.layer_norm_weight`` is ``….input_layernorm.weight``."""
    for fused, plain in FUSED_NAMES.items():
        name = name.replace(fused, plain)
    return name


def fused_name(name: str) -> str:
    """The inverse of :func:`plain_name`."""
    for fused, plain in FUSED_NAMES.items():
        name = name.replace(plain, fused)
    return name


def _layer_spec(
    parts: TransformerEngineParts, *, core_attention: type[torch.nn.Module], activation: type[torch.nn.Module]
) -> ModuleSpec:
    attention = attention_spec(
        qkv=parts.norm_linear, output=parts.row_linear, norm=parts.norm, core_attention=core_attention
    )
    mlp = MLPSubmodules(linear_fc1=parts.norm_linear, activation_func=activation, linear_fc2=parts.row_linear)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=dict(FUSED_NAMES),
        ),
    )
