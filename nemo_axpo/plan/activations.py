"""What one forward pass keeps for its backward pass, tensor by tensor.

The method is that of Korthikanti et al. 2022 (arXiv 2205.05198, section 4), which counts the inputs that each operation
saves. Its sum for a GPT layer, ``s·b·h·(34 + 5·a·s/h)`` bytes, does not fit this model: no dropout masks, no stored attention
matrix, grouped keys and values, a gated MLP, RMSNorms computed in float32, norms of queries and keys. So the ledger
below names every tensor that our modules save; tests compare it with what autograd really holds.

What Transformer Engine's layers keep is written down from its source and not yet compared with a run on a GPU.

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
    tables: float
    """Rotary tables and indices, which all layers share; recomputation keeps them too."""


def layer_ledger(sizes: ModelSizes, *, settings: TrainerSettings) -> dict[str, float]:
    """Bytes per token that one decoder layer keeps without recomputation, by operation."""
    b, t, s = settings.value_bytes, settings.tensor_parallel, settings.sequence_share
    rounded = 1 if settings.has_fp8 else b  # a projection keeps its input as it multiplies it
    query, group = sizes.query_width / t, sizes.group_width / t
    norm = _norm_bytes(sizes.hidden, settings=settings) * s
    linear_input = rounded * sizes.hidden * s
    # Segments hand the context of attention on as it is; blocks copy it into packed order.
    is_shared = settings.packs_thd and not settings.has_fp8
    return {
        "input norm": norm,
        "qkv input": linear_input,
        "query norm": _norm_bytes(query, settings=settings, num_rows=sizes.num_heads / t),
        "key norm": _key_norm_bytes(sizes, settings=settings),
        "attention": 2 * b * query + 2 * b * group + FLOAT32 * sizes.num_heads / t,  # q, out; k, v; log-sum-exp
        "projection input": 0.0 if is_shared else rounded * query,
        "mlp norm": norm,
        "mlp input": linear_input,
        "mlp": (3 * b + rounded) * sizes.intermediate / t,  # gate and up, silu(gate), their product
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
    kept, rebuilt = _decoder(sizes, settings=settings, shape=shape, stage=stage)
    language = kept * shape.num_tokens + _language_extras(sizes, settings=settings, shape=shape, stage=stage)
    vision, vision_rebuilt = (0.0, 0.0) if stage else _tower(sizes, settings=settings, shape=shape)
    return Activations(
        language=language,
        vision=vision,
        recomputed=max(rebuilt * shape.num_tokens, vision_rebuilt),
        tables=_table_bytes(sizes, settings=settings, shape=shape, stage=stage),
    )


def _decoder(
    sizes: ModelSizes, *, settings: TrainerSettings, shape: MicrobatchShape, stage: int
) -> tuple[float, float]:
    """Bytes per token that a stage's layers keep, and rebuild at a time during the backward pass."""
    memory, ledger = settings.memory, layer_ledger(sizes, settings=settings)
    layers, whole = sizes.num_layers // settings.pipeline_parallel, sum(ledger.values())
    if memory.recompute == "none":
        return layers * whole, 0.0
    if memory.recompute == "selective":
        kept = sum(_selective(sizes, ledger=ledger, settings=settings).values())
        return layers * kept, sum(ledger[_REBUILT[module]] for module in memory.recompute_modules)
    units = min(memory.recompute_num_layers, layers)
    # DeepStack levels are arguments of the recomputed layers, hence kept.
    levels = sizes.vision.num_deepstack if stage == 0 and shape.num_image_tokens else 0
    hidden = settings.value_bytes * sizes.hidden * settings.sequence_share
    if memory.recompute_method == "uniform":
        return (-(-layers // units) + levels) * hidden, units * whole
    return (units + min(levels, units)) * hidden + (layers - units) * whole, whole


_REBUILT = {"core_attn": "attention", "mlp": "mlp"}
"""What selective recomputation rebuilds, in the words of the ledger."""


def _selective(sizes: ModelSizes, *, ledger: dict[str, float], settings: TrainerSettings) -> dict[str, float]:
    """The ledger of a layer under selective recomputation.

    The arguments of attention stay: queries, keys, and values, which are a view of the whole projection. In float32 the
    norm of the keys holds the projection already.
    """
    dropped = {_REBUILT[module] for module in settings.memory.recompute_modules}
    kept = {name: size for name, size in ledger.items() if name not in dropped}
    if "attention" in dropped:
        b, t = settings.value_bytes, settings.tensor_parallel
        is_held = b == FLOAT32 and not settings.has_fused_layers
        projection = 0.0 if is_held else (sizes.query_width + 2 * sizes.group_width) / t
        kept["projection input"] = (1 if settings.has_fp8 else b) * sizes.query_width / t
        kept["attention"] = b * ((sizes.query_width + sizes.group_width) / t + projection)
    return kept


def _table_bytes(sizes: ModelSizes, *, settings: TrainerSettings, shape: MicrobatchShape, stage: int) -> float:
    """Cosines and sines of the text in the type of the activations, of the patches in float32; where rows lie."""
    tables = shape.num_tokens * (2 * settings.value_bytes * sizes.head_dim + 2 * INDEX)
    if stage == 0 and not settings.freezes_vision:
        vision = sizes.vision
        patches = shape.num_image_tokens * vision.patches_per_token
        tables += patches * 2 * FLOAT32 * vision.hidden // vision.num_heads
    return tables


def _language_extras(sizes: ModelSizes, *, settings: TrainerSettings, shape: MicrobatchShape, stage: int) -> float:
    """Images put in their places; the last norm and the hidden states whose logits are wanted."""
    b, tokens, extras = settings.value_bytes, shape.num_tokens, 0.0
    if stage == 0:
        levels = 1 + sizes.vision.num_deepstack
        extras += INDEX * tokens + shape.num_image_tokens * (levels * b * sizes.hidden + 2 * INDEX)
    if stage == settings.pipeline_parallel - 1:
        extras += tokens * _norm_bytes(sizes.hidden, settings=settings) * settings.sequence_share
        extras += shape.num_loss_tokens * (b * sizes.hidden + INDEX)
    return extras


def _tower(sizes: ModelSizes, *, settings: TrainerSettings, shape: MicrobatchShape) -> tuple[float, float]:
    """Bytes kept by the vision tower, and rebuilt for one of its blocks; every tensor-parallel rank runs all of it."""
    if settings.freezes_vision:
        return 0.0, 0.0
    vision, b = sizes.vision, settings.value_bytes
    patches = shape.num_image_tokens * vision.patches_per_token
    block = sum(vision_block_ledger(vision, value_bytes=b).values())
    is_recomputed = settings.memory.recompute == "full"
    kept, rebuilt = (b * vision.hidden, block) if is_recomputed else (block, 0.0)
    merger = 3 * b * vision.hidden  # normalised, before and after the activation
    statistics = 2 * b * (1 + vision.num_deepstack / vision.patches_per_token)  # of the mergers' norms
    entry = b * vision.patch_values + 4 * (b + INDEX)  # patches, resampled positions
    extras = (1 + vision.num_deepstack) * merger + statistics + b * vision.hidden + entry
    return patches * (vision.depth * kept + extras), patches * rebuilt


def _norm_bytes(width: float, *, settings: TrainerSettings, num_rows: float = 1) -> float:
    """Per token: the input, an inverse root mean square per row, and unless it is fused the normalised values.

    Our norm keeps its input in float32. Source of the fused one: Transformer Engine's ``_LayerNormLinear.forward``.
    """
    if settings.has_fused_layers:
        return settings.value_bytes * width + FLOAT32 * num_rows
    return (FLOAT32 + settings.value_bytes) * width + FLOAT32 * num_rows


def _key_norm_bytes(sizes: ModelSizes, *, settings: TrainerSettings) -> float:
    """In float32 our norm of the keys keeps a view of the whole projection instead of a copy of the keys."""
    t, group = settings.tensor_parallel, sizes.group_width / settings.tensor_parallel
    size = _norm_bytes(group, settings=settings, num_rows=sizes.num_groups / t)
    is_view = settings.value_bytes == FLOAT32 and not settings.has_fused_layers
    return size + (FLOAT32 * (sizes.query_width / t + group) if is_view else 0.0)
