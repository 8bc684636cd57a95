"""What of a config decides the trainer's memory: the one place where the plan reads the config's words."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.config.checks import layer_settings, memory_arguments
from nemo_axpo.config.schema import Config

_PLAIN = MemorySettings()
BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of one value by the config's word for its type."""


@dataclass(frozen=True)
class TrainerSettings:
    """How the actor of one job is run."""

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    value_bytes: int
    """Of a weight and of an activation."""
    micro_batch_tokens: int
    sequence_parallel: bool = False
    """Never True without tensor parallelism, where it does nothing."""
    freezes_vision: bool = False
    packs_thd: bool = False
    """Whether attention runs on segments (``actor.packing``) instead of padded blocks."""
    has_fused_layers: bool = False
    """Whether the decoder is built of Transformer Engine's layers; ``auto`` is planned as the local ones, which keep more."""
    has_fp8: bool = False
    has_reference: bool = True
    is_on_host: bool = False
    """Whether the trainer runs on a CPU."""
    memory: MemorySettings = _PLAIN

    @property
    def sequence_share(self) -> float:
        """Share of the tokens that norms and residuals of one rank see."""
        return 1 / self.tensor_parallel if self.sequence_parallel else 1.0

    @property
    def optimizer_shards(self) -> int:
        """Ranks that share the optimizer's state of one model shard."""
        return self.data_parallel if self.memory.distributed_optimizer else 1


def trainer_settings(config: Config, *, data_parallel: int, is_warm_start: bool = False) -> TrainerSettings:
    """Of ``config``, with ``data_parallel`` replicas; the warm start has no reference policy."""
    actor, layers = config.actor, layer_settings(config)
    return TrainerSettings(
        tensor_parallel=actor.tensor_parallel,
        pipeline_parallel=actor.pipeline_parallel,
        data_parallel=data_parallel,
        value_bytes=BYTES[actor.dtype],
        micro_batch_tokens=actor.micro_batch_tokens,
        sequence_parallel=actor.sequence_parallel and actor.tensor_parallel > 1,
        freezes_vision=actor.freeze_vision,
        packs_thd=_packs_thd(config),
        has_fused_layers=layers.needs_transformer_engine,
        has_fp8=layers.fp8 is not None,
        has_reference=config.loss.kl_coef > 0 and not is_warm_start,
        is_on_host=config.device == "cpu",
        memory=MemorySettings(**memory_arguments(config)),
    )


def _packs_thd(config: Config) -> bool:
    """``auto`` is thd on a GPU in bf16, where one of the kernels is taken to be installed."""
    if config.actor.packing != "auto":
        return config.actor.packing == "thd"
    return config.device == "cuda" and config.actor.dtype == "bfloat16"
