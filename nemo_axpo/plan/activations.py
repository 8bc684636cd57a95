"""What one forward pass keeps for its backward pass, tensor by tensor.

The method is that of Korthikanti et al. 2022 (arXiv 2205.05198, section 4), which counts the inputs that each operation
saves. Its sum for a GPT layer, ``s·b·h·(34 + 5·a·s/h)`` bytes, does not fit this model: no dropout masks, no stored attention
matrix, grouped keys and values, a gated MLP, RMSNorms computed in float32, norms of queries and keys. So the ledger
below names every tensor that our modules save; tests compare it with what autograd really holds.

``b`` bytes of a value, ``t`` tensor-parallel ranks, ``s`` the share of the tokens a rank sees outside of attention and MLP
(1/t under sequence parallelism, else 1). H hidden, I intermediate, A all query channels, G all key channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.plan.settings import TrainerSettings
from nemo_axpo.plan.sizes import ModelSizes, VisionSizes

FLOAT32, INDEX = 4, 8
"""Bytes of a float32 and of an int64."""


@dataclass(frozen=True)
class MicrobatchShape:
    """What one micro-batch holds."""

    num_tokens: int
    """Tokens T that the decoder computes."""
    num_image_tokens: int
    """Of these, image tokens."""
    num_loss_tokens: int
    """Of these, tokens whose next token is trained."""


@dataclass(frozen=True)
class Activations:
    """Bytes kept by one micro-batch on one rank."""

    language: float
    vision: float
    recomputed: float
    """Rebuilt during the backward pass, for one layer at a time; not multiplied by the micro-batches in flight."""


def layer_ledger(sizes: ModelSizes, *, settings: TrainerSettings) -> dict[str, float]:
    """Bytes per token that one decoder layer keeps without recomputation, by operation."""
    b, t, s = settings.value_bytes, settings.tensor_parallel, settings.sequence_share
    norm = _norm_bytes(sizes.hidden, value_bytes=b) * s
    linear_input = b * sizes.hidden * s
    query, group = sizes.query_width / t, sizes.group_width / t
    # In float32 the norm of the keys keeps a view of the whole projection instead of a float32 copy of the keys.
    key_source = FLOAT32 * group if b < FLOAT32 else FLOAT32 * (query + 2 * group)
    return {
        "input norm": norm,
        "qkv input": linear_input,
        "query norm": FLOAT32 * query + b * query + FLOAT32 * sizes.num_heads / t,
        "key norm": key_source + b * group + FLOAT32 * sizes.num_groups / t,
        "attention": 2 * b * query + 2 * b * group + FLOAT32 * sizes.num_heads / t,  # q, out; k, v; log-sum-exp
        "projection input": b * query,
        "mlp norm": norm,
        "mlp input": linear_input,
        "mlp": 4 * b * sizes.intermediate / t,  # gate and up, silu(gate), their product
    }


def vision_block_ledger(vision: VisionSizes, *, value_bytes: int) -> dict[str, float]:
    """Bytes per patch that one block of the tower keeps without recomputation, by operation."""
    b, hidden = value_bytes, vision.hidden
    norm = b * hidden + 2 * b  # its input, mean and inverse deviation
    return {
        "norms": 2 * norm,
        "linear inputs": 2 * b * hidden,
        "attention": 6 * b * hidden + FLOAT32 * vision.num_heads,  # rotated q, k; the projection v lies in; out; sums
        "mlp": 2 * b * vision.intermediate,
    }


def stage_activations(
    sizes: ModelSizes, *, settings: TrainerSettings, shape: MicrobatchShape, stage: int
) -> Activations:
    """What one micro-batch keeps on a rank of pipeline stage ``stage``."""
    layers = sizes.num_layers // settings.pipeline_parallel
    ledger = layer_ledger(sizes, settings=settings)
    kept, rebuilt = _recomputed(ledger, layer_input=settings.value_bytes * sizes.hidden * settings.sequence_share,
                                recompute=settings.recompute)  # fmt: skip
    language = layers * kept * shape.num_tokens + _language_extras(sizes, settings=settings, shape=shape, stage=stage)
    vision, vision_rebuilt = (0.0, 0.0) if stage else _tower(sizes, settings=settings, shape=shape)
    return Activations(language, vision, max(rebuilt * shape.num_tokens, vision_rebuilt))


def _recomputed(ledger: dict[str, float], *, layer_input: float, recompute: str) -> tuple[float, float]:
    """Bytes per token kept by every layer, and rebuilt for one layer during the backward pass."""
    total = sum(ledger.values())
    if recompute == "none":
        return total, 0.0
    if recompute == "full":
        return layer_input, total
    dropped = sum(ledger[name] for name in SELECTIVE)
    return total - dropped, dropped


SELECTIVE = ("attention",)
"""What selective recomputation rebuilds."""


def _language_extras(sizes: ModelSizes, *, settings: TrainerSettings, shape: MicrobatchShape, stage: int) -> float:
    """Rotary tables and indices once per stage; images put in their places; the last norm and the output's input."""
    b, tokens = settings.value_bytes, shape.num_tokens
    extras = tokens * (2 * b * sizes.head_dim + 2 * INDEX)
    if stage == 0:
        levels = 1 + sizes.vision.num_deepstack
        extras += INDEX * tokens + shape.num_image_tokens * (levels * b * sizes.hidden + 2 * INDEX)
    if stage == settings.pipeline_parallel - 1:
        extras += tokens * _norm_bytes(sizes.hidden, value_bytes=b) * settings.sequence_share
        extras += shape.num_loss_tokens * (b * sizes.hidden + INDEX)
    return extras


def _tower(sizes: ModelSizes, *, settings: TrainerSettings, shape: MicrobatchShape) -> tuple[float, float]:
    """Bytes kept by the vision tower, and rebuilt for one of its blocks; every tensor-parallel rank runs all of it."""
    if settings.freezes_vision:
        return 0.0, 0.0
    vision, b = sizes.vision, settings.value_bytes
    patches = shape.num_image_tokens * vision.patches_per_token
    block = sum(vision_block_ledger(vision, value_bytes=b).values())
    kept, rebuilt = _recomputed({"block": block}, layer_input=b * vision.hidden,
                                recompute="full" if settings.recompute == "full" else "none")  # fmt: skip
    merger = 3 * b * vision.hidden  # normalised, before and after the activation
    head_dim = vision.hidden // vision.num_heads
    entry = b * vision.patch_values + 4 * (b + INDEX) + 2 * FLOAT32 * head_dim  # patches, position and rotary tables
    extras = (1 + vision.num_deepstack) * merger + b * vision.hidden + entry
    return patches * (vision.depth * kept + extras), patches * rebuilt


def _norm_bytes(hidden: int, *, value_bytes: int) -> float:
    """Per token: the float32 input, its inverse root mean square, the normalised values."""
    return FLOAT32 * hidden + FLOAT32 + value_bytes * hidden
