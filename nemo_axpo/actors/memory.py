"""What the actor recomputes, shards or moves to hold a larger model; none of it changes the numbers of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemo_axpo.errors import rule_message

RECOMPUTE = ("none", "selective", "full")
RECOMPUTE_MODULES = ("core_attn", "mlp")
"""Megatron's names of parts of a dense layer; it has a third, the norms, which needs Transformer Engine in 0.16."""
RECOMPUTE_METHODS = ("uniform", "block")


@dataclass(frozen=True)
class MemorySettings:
    """Memory against time; ValueError for values that make no sense together."""

    recompute: str = "none"
    """``selective``: ``recompute_modules`` of every decoder layer are computed again in the backward pass; ``full``:
    whole decoder layers and vision blocks."""
    recompute_modules: tuple[str, ...] = ("core_attn",)
    """Of ``selective``: ``core_attn``, ``mlp`` or both."""
    recompute_method: str = "uniform"
    """Of ``full``: ``uniform`` keeps the input of every ``recompute_num_layers`` layers, ``block`` recomputes the first
    ``recompute_num_layers`` layers of a pipeline stage one by one and keeps the others."""
    recompute_num_layers: int = 1
    distributed_optimizer: bool = False
    """Optimizer state and master weights are sharded over the data-parallel replicas."""
    offload_optimizer: bool = False
    """Gradients go to the host, where Adam keeps its state and steps; on a GPU, with ``distributed_optimizer``."""
    logprob_chunk_tokens: int | None = None
    """Loss tokens whose logits exist at the same time; None: as many as fit 512 MiB of float32 logits."""

    def __post_init__(self) -> None:
        _check_choice("recompute", self.recompute, choices=RECOMPUTE)
        _check_choice("recompute_method", self.recompute_method, choices=RECOMPUTE_METHODS)
        for module in self.recompute_modules:
            _check_choice("recompute_modules", module, choices=RECOMPUTE_MODULES)
        for name in ("recompute_num_layers", "logprob_chunk_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(rule_message(f"{name} must be positive", got=value, cure="give 1 or more"))
        if self.offload_optimizer and not self.distributed_optimizer:
            rule = "offload_optimizer works on the shards of the distributed optimizer"
            cure = "set distributed_optimizer=true"
            raise ValueError(rule_message(rule, got="distributed_optimizer=false", cure=cure))

    def check_device(self, device_type: str) -> None:
        """ValueError for what a CPU cannot do."""
        if self.offload_optimizer and device_type == "cpu":
            rule = "offload_optimizer moves what lies on a GPU to the host"
            raise ValueError(rule_message(rule, got="device=cpu", cure="set offload_optimizer=false"))

    def transformer_fields(self) -> dict[str, Any]:
        """Fields of megatron's ``TransformerConfig``."""
        if self.recompute == "none":
            return {}
        if self.recompute == "selective":
            return {"recompute_granularity": "selective", "recompute_modules": list(self.recompute_modules)}
        return {
            "recompute_granularity": "full",
            "recompute_method": self.recompute_method,
            "recompute_num_layers": self.recompute_num_layers,
        }


def _check_choice(name: str, value: str, *, choices: tuple[str, ...]) -> None:
    if value not in choices:
        rule = f"{name} must be one of: {', '.join(choices)}"
        raise ValueError(rule_message(rule, got=repr(value), cure="use one of these"))
