"""Attention over :class:`ThdRows` by a variable-length kernel: no padding, no mask, and only the queries that are new.

Three libraries bring such a kernel for CUDA; the first one that is installed and has it for the GPU is used. All align the
causal mask with the end of a segment, so that the queries of a row, its last positions, see its shared beginning::

    keys      a b d e       d sees a b d
    queries       d e       e sees a b d e

The calls are written against the sources of transformer-engine 2.9, flash-attn 2.8 and torch 2.13. Not yet run on a GPU:
what is tested is everything around the kernel, with :func:`segment_by_segment` in its place.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_axpo.models.qwen3_vl.inputs import ThdRows

VarlenKernel = Callable[..., Tensor]
"""Query ``[T, heads, D]``, key and value ``[K, groups, D]``, ``rows`` and ``scale`` to the context ``[T, heads, D]``."""


def thd_attention(
    query: Tensor, key: Tensor, value: Tensor, *, rows: ThdRows, scale: float | None, kernel: VarlenKernel | None = None
) -> Tensor:
    """Query ``[T, 1, heads, D]``, key and value ``[T, 1, groups, D]`` to ``[T, 1, heads · D]``.

    Keys and values are gathered row by row; a shared token's gradient is summed over its rows. ``scale``: None for
    ``D ** -0.5``. ``kernel``: None for the best one on this device.
    """
    kernel = kernel or choose_kernel(query.device, dtype=query.dtype)
    key_KGD, value_KGD = (states.squeeze(1).index_select(0, rows.key_K) for states in (key, value))
    context = kernel(query.squeeze(1), key_KGD, value_KGD, rows=rows, scale=scale)
    return context.reshape(query.shape[0], 1, -1)


def choose_kernel(device: torch.device, *, dtype: torch.dtype) -> VarlenKernel:
    """The first fast kernel that is installed and computes ``dtype`` on ``device``, else the plain one."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        for kernel, module, name, argument in _FAST_KERNELS:
            if _is_usable(module, name, argument) and not (kernel is transformer_engine and _te_lacks_kernel(device)):
                return kernel
    return segment_by_segment


def has_fast_kernel(device: torch.device, *, dtype: torch.dtype) -> bool:
    """Whether :func:`choose_kernel` finds more than the plain one."""
    return choose_kernel(device, dtype=dtype) is not segment_by_segment


def segment_by_segment(query: Tensor, key: Tensor, value: Tensor, *, rows: ThdRows, scale: float | None) -> Tensor:
    """Torch's attention, one row at a time: any device and dtype, slow for many short rows."""
    contexts = []
    for queries, keys in zip(_segments(rows.query_start_R), _segments(rows.key_start_R), strict=True):
        q, k, v = (states.transpose(0, 1).unsqueeze(0) for states in (query[queries], key[keys], value[keys]))
        num_shared, mask = k.shape[2] - q.shape[2], None
        if num_shared:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(num_shared)
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        contexts.append(context.squeeze(0).transpose(0, 1))
    return torch.cat(contexts)


def _segments(start_R: Tensor) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(start_R.tolist())]


def transformer_engine(query: Tensor, key: Tensor, value: Tensor, *, rows: ThdRows, scale: float | None) -> Tensor:
    """cuDNN's or flash attention as Transformer Engine chooses; source: ``DotProductAttention.forward``."""
    module = _te_module(query.shape[1], key.shape[1], query.shape[2], scale)
    context = module(
        query,
        key,
        value,
        qkv_format="thd",
        cu_seqlens_q=rows.query_start_R,
        cu_seqlens_kv=rows.key_start_R,
        max_seqlen_q=rows.max_queries,
        max_seqlen_kv=rows.max_keys,
        attn_mask_type="padding_causal_bottom_right",
    )
    return context.view(query.shape)


def flash_attention(query: Tensor, key: Tensor, value: Tensor, *, rows: ThdRows, scale: float | None) -> Tensor:
    """flash-attn; its causal mask is aligned with the end since 2.1."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=rows.query_start_R,
        cu_seqlens_k=rows.key_start_R,
        max_seqlen_q=rows.max_queries,
        max_seqlen_k=rows.max_keys,
        softmax_scale=scale,
        causal=True,
    )


def torch_varlen(query: Tensor, key: Tensor, value: Tensor, *, rows: ThdRows, scale: float | None) -> Tensor:
    """Torch's own copy of flash attention 2; the window ``(-1, 0)`` is its word for causal."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        query,
        key,
        value,
        rows.query_start_R,
        rows.key_start_R,
        rows.max_queries,
        rows.max_keys,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=True,
    )


_FLASH_ATTENTION = ("flash_attn", "flash_attn_varlen_func", "block_table")
# Where each kernel is found, and an argument that versions without what is needed here do not have.
_FAST_KERNELS: tuple[tuple[VarlenKernel, str, str, str], ...] = (
    (transformer_engine, "transformer_engine.pytorch", "DotProductAttention", "softmax_scale"),
    (flash_attention, *_FLASH_ATTENTION),
    (torch_varlen, "torch.nn.attention.varlen", "varlen_attn", "enable_gqa"),
)


@functools.lru_cache(maxsize=8)
def _te_module(num_heads: int, num_groups: int, head_dim: int, scale: float | None) -> Callable[..., Tensor]:
    """A module without parameters. Heads are this rank's own, so it knows nothing of tensor parallelism.

    ``attention_type``: with "self" it would take the lengths of the keys for those of the queries.
    """
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(
        num_attention_heads=num_heads,
        kv_channels=head_dim,
        num_gqa_groups=num_groups,
        attention_dropout=0.0,
        qkv_format="thd",
        attn_mask_type="padding_causal_bottom_right",
        attention_type="cross",
        softmax_scale=scale,
    )


def _te_lacks_kernel(device: torch.device) -> bool:
    """Whether Transformer Engine has no kernel for segments: cuDNN's needs compute capability 9, the other is flash-attn's.

    Source: ``nvte_get_fused_attn_backend`` and ``get_attention_backend``.
    """
    return torch.cuda.get_device_capability(device) < (9, 0) and not _is_usable(*_FLASH_ATTENTION)


@functools.cache
def _is_usable(module: str, name: str, argument: str) -> bool:
    """Whether it can be imported (a package built for another CUDA is found and still fails) and is new enough."""
    try:
        return argument in inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except (ImportError, OSError, AttributeError):
        return False
