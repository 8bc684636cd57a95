"""Memory of a generation engine that shares the GPU with the trainer."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.config.schema import EngineConfig
from nemo_axpo.engines.names import SERVER_ENGINES
from nemo_axpo.plan.parameters import whole_model
from nemo_axpo.plan.settings import BYTES
from nemo_axpo.plan.sizes import ModelSizes


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on the GPU of a replica's leader; the engine is not divided over ranks."""

    weights: float
    cache_per_sequence: float
    """Keys and values for one more of ``engine.max_num_seqs``."""
    cache: float


NO_ENGINE = EngineMemory(0.0, 0.0, 0.0)


def engine_memory(config: EngineConfig, *, sizes: ModelSizes) -> EngineMemory:
    """Of the embedded engine: a second copy of the weights, and a preallocated cache. Servers have GPUs of their own: nothing.

    The cache holds ``engine.max_model_len`` positions for every running sequence, and as many again for sequences that
    ended and are kept for their prefixes.
    """
    if config.name in SERVER_ENGINES:
        return NO_ENGINE
    value_bytes = BYTES[config.dtype]
    per_position = 2 * sizes.num_layers * sizes.group_width * value_bytes
    per_sequence = 2 * config.max_model_len * per_position
    return EngineMemory(
        weights=whole_model(sizes).total * value_bytes,
        cache_per_sequence=per_sequence,
        cache=config.max_num_seqs * per_sequence,
    )
