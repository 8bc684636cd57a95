"""FP8 around the decoder's layers, as megatron's own block has it, and weights back in high precision."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from megatron.core.enums import Fp8Recipe
from megatron.core.fp8_utils import dequantize_fp8_tensor, get_fp8_align_size, get_fp8_context, is_float8tensor
from megatron.core.transformer import TransformerConfig
from torch import Tensor


def block_context(config: TransformerConfig) -> AbstractContextManager:
    """Around all layers of a stage: delayed scaling exchanges its maxima where it is left, so it is entered once."""
    if config.fp8 and config.fp8_recipe == Fp8Recipe.delayed:
        return get_fp8_context(config)
    return contextlib.nullcontext()


def layer_context(config: TransformerConfig, layer_number: int) -> AbstractContextManager:
    """Around layer ``layer_number`` (from 1, over the whole model): FP8, or bf16 at the ends of the model.

    Source: ``TransformerBlock.forward``.
    """
    if config.fp8 and config.fp8_recipe != Fp8Recipe.delayed:
        return get_fp8_context(config, layer_number - 1)
    return contextlib.nullcontext()


def token_multiple(config: TransformerConfig) -> int:
    """What the number of packed tokens must be a multiple of: sequence parallelism splits it, FP8 kernels want it even."""
    ranks = config.tensor_model_parallel_size if config.sequence_parallel else 1
    return ranks * (get_fp8_align_size(config.fp8_recipe) if config.fp8 else 1)


def high_precision(parameter: Tensor) -> Tensor:
    """The values of a parameter, which Transformer Engine may hold quantised, in the model's own type."""
    detached = parameter.detach()
    return dequantize_fp8_tensor(detached) if is_float8tensor(detached) else detached
