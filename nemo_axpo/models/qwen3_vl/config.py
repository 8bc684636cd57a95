"""From a Hugging Face ``Qwen3VLConfig`` to megatron's ``TransformerConfig`` for the text model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from nemo_axpo.errors import rule_message
from nemo_axpo.models.qwen3_vl.layout_rules import layout_problems


def transformer_config(
    hf_config: Any,
    *,
    dtype: torch.dtype = torch.float32,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    sequence_parallel: bool = False,
    **fields: Any,
) -> TransformerConfig:
    """Megatron's configuration of ``hf_config``'s text model; ``fields``: further ones, of recomputation or FP8 say.

    ValueError for what this model does not have (attention bias, another activation, scaled RoPE) and for sizes the
    layout does not divide.
    """
    text = hf_config.text_config
    _check_supported(text)
    problems = layout_problems(hf_config, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel)
    if problems:
        raise ValueError("\n".join(problems))
    if fields.get("fp8"):
        _check_fp8_sizes(text, tensor_parallel=tensor_parallel)
    return TransformerConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        num_attention_heads=text.num_attention_heads,
        num_query_groups=text.num_key_value_heads,
        kv_channels=head_dim(text),
        ffn_hidden_size=text.intermediate_size,
        normalization="RMSNorm",
        layernorm_epsilon=text.rms_norm_eps,
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=True,  # the layer spec's own activation module instead of megatron's chain of operations
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        mrope_section=list(rope_settings(text)[1]),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # Every weight comes from a checkpoint. (perform_initialization=False would leave out the marks of sharded weights.)
        init_method=_leave_empty,
        output_layer_init_method=_leave_empty,
        embedding_init_method=_leave_empty,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        sequence_parallel=sequence_parallel and tensor_parallel > 1,
        variable_seq_lengths=pipeline_parallel > 1,  # every micro-batch has its own number of packed tokens
        moe_token_dispatcher_type="alltoall",  # megatron's condition for variable_seq_lengths; there are no experts
        calculate_per_token_loss=True,  # losses arrive as shares of the step: sum over micro-batches and ranks, no mean
        cuda_graph_scope=[],
        **{"transformer_impl": "local", **fields},
        # Fused kernels need CUDA extensions; the fused cross entropy rounds its backward to bf16.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
    )


def _check_fp8_sizes(text: Any, *, tensor_parallel: int) -> None:
    """Transformer Engine's rule (``assert_dim_for_fp8_exec``): what a product sums over is a multiple of 16."""
    sums = {
        "the hidden size": text.hidden_size,
        "the MLP's width on a rank": text.intermediate_size // tensor_parallel,
        "the width of a rank's query heads": text.num_attention_heads // tensor_parallel * head_dim(text),
        "the width of a rank's key-value heads": text.num_key_value_heads // tensor_parallel * head_dim(text),
    }
    for name, size in sums.items():
        if size % 16:
            rule = f"{name} must be a multiple of 16 for fp8"
            raise ValueError(rule_message(rule, got=size, cure="use a smaller tensor_parallel, or fp8.recipe=null"))


def _leave_empty(weight: torch.Tensor) -> torch.Tensor:
    return weight


def head_dim(text: Any) -> int:
    """Channels of one attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def rope_settings(text: Any) -> tuple[float, tuple[int, int, int]]:
    """Base frequency and the numbers of (time, height, width) frequency pairs.

    transformers 5 keeps both in ``rope_parameters``, 4.57 in ``rope_theta`` and ``rope_scaling``.
    """
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    theta = parameters.get("rope_theta", getattr(text, "rope_theta", None))
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type not in ("default", "mrope"):
        rule = "only unscaled rotary embedding is implemented"
        raise ValueError(rule_message(rule, got=f"rope_type {rope_type!r}", cure="use a checkpoint with 'default'"))
    return float(theta), tuple(parameters.get("mrope_section", (24, 20, 20)))


def _check_supported(text: Any) -> None:
    if text.hidden_act != "silu":
        raise ValueError(rule_message("Qwen3-VL's MLP is gated by silu", got=text.hidden_act, cure="fix config.json"))
    if getattr(text, "attention_bias", False):
        rule = "Qwen3-VL's attention has no bias"
        raise ValueError(rule_message(rule, got="attention_bias=true", cure="use a checkpoint without it"))
