"""Which layers the decoder is built of, and the FP8 recipe of their matrix products.

Weights stay in bf16 with float32 master weights; Transformer Engine rounds weights and activations to FP8 for each
product. The vision tower, embeddings, norms, attention scores and the output layer stay in bf16.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from nemo_axpo.errors import rule_message
from nemo_axpo.extras import has_extra, require_extra

logger = logging.getLogger(__name__)

AUTO, LOCAL, TRANSFORMER_ENGINE = "auto", "local", "transformer_engine"
RECIPES = ("delayed", "tensorwise", "blockwise")
FORMATS = ("e4m3", "hybrid")
AMAX_ALGORITHMS = ("max", "most_recent")


@dataclass(frozen=True)
class Fp8Settings:
    """An FP8 recipe in megatron's words (``TransformerConfig.fp8_…``); ValueError for values that exclude each other."""

    recipe: str = "delayed"
    """How scales are found: ``delayed`` from the maxima of earlier steps, ``tensorwise`` from the tensor itself,
    ``blockwise`` per block of 128."""
    format: str = "hybrid"
    """``e4m3`` everywhere, or ``hybrid``: e4m3 forward, e5m2 for gradients."""
    margin: int = 0
    """Scales are smaller by 2^margin; ``delayed`` only."""
    amax_history_len: int = 1024
    """Earlier maxima that are kept; ``delayed`` only."""
    amax_compute_algo: str = "max"
    """Which of them counts: ``max`` or ``most_recent``; ``delayed`` only."""
    wgrad: bool = True
    """Gradients of weights are FP8 products too; ``delayed`` only."""
    first_last_layers_bf16: bool = False
    """The first and last decoder layers compute in bf16."""
    num_layers_at_start_in_bf16: int = 1
    num_layers_at_end_in_bf16: int = 1

    def __post_init__(self) -> None:
        for name, choices in (("recipe", RECIPES), ("format", FORMATS), ("amax_compute_algo", AMAX_ALGORITHMS)):
            if getattr(self, name) not in choices:
                rule = f"fp8.{name} must be one of: {', '.join(choices)}"
                raise ValueError(rule_message(rule, got=repr(getattr(self, name)), cure="use one of these"))
        if self.first_last_layers_bf16 and self.recipe == "delayed":
            rule = "fp8.first_last_layers_bf16 needs a recipe that may change from layer to layer (megatron's rule)"
            raise ValueError(rule_message(rule, got="fp8.recipe=delayed", cure="use tensorwise or blockwise"))

    def transformer_fields(self) -> dict[str, Any]:
        """Fields of megatron's ``TransformerConfig``."""
        return {
            "fp8": self.format,
            "fp8_recipe": self.recipe,
            "fp8_margin": self.margin,
            "fp8_amax_history_len": self.amax_history_len,
            "fp8_amax_compute_algo": self.amax_compute_algo,
            "fp8_wgrad": self.wgrad,
            # Maxima are exchanged in every pass, and replicas do not run equally many: over all of them it would hang.
            "tp_only_amax_red": True,
            "first_last_layers_bf16": self.first_last_layers_bf16,
            "num_layers_at_start_in_bf16": self.num_layers_at_start_in_bf16,
            "num_layers_at_end_in_bf16": self.num_layers_at_end_in_bf16,
        }


@dataclass(frozen=True)
class LayerSettings:
    """What the decoder's layers are built of."""

    transformer_impl: str = AUTO
    """``local``: megatron's linears and our norm on plain torch; ``transformer_engine``: its fused layers; ``auto``: the
    latter where it is installed, on CUDA and in bf16."""
    fp8: Fp8Settings | None = None

    def transformer_fields(self, device_type: str, *, dtype: str) -> dict[str, Any]:
        """Fields of megatron's ``TransformerConfig``; the choice goes to the log.

        ``dtype``: of the weights. ValueError as :meth:`check`; MissingExtraError where Transformer Engine is needed and not
        installed.
        """
        self.check(device_type, dtype=dtype)
        if self.needs_transformer_engine:
            require_extra("te")
        chosen = self._chosen(device_type, dtype=dtype)
        fp8 = "" if self.fp8 is None else f", FP8 {self.fp8.recipe} {self.fp8.format}"
        logger.info("decoder layers and norms: %s (transformer_impl=%s)%s", chosen, self.transformer_impl, fp8)
        return {"transformer_impl": chosen, **({} if self.fp8 is None else self.fp8.transformer_fields())}

    @property
    def needs_transformer_engine(self) -> bool:
        """Whether it must be installed."""
        return self.transformer_impl == TRANSFORMER_ENGINE or self.fp8 is not None

    def check(self, device_type: str, *, dtype: str) -> None:
        """ValueError for what cannot work with this device or type of weights, installed or not."""
        if self.needs_transformer_engine and device_type != "cuda":
            rule = f"{'fp8' if self.fp8 else 'transformer_impl=transformer_engine'} needs a CUDA device"
            cure = "set device=cuda, or " + ("fp8.recipe=null" if self.fp8 else "transformer_impl=auto")
            raise ValueError(rule_message(rule, got=f"device={device_type}", cure=cure))
        if self.fp8 is None:
            return
        if self.transformer_impl == LOCAL:
            rule, cure = "fp8 needs Transformer Engine's layers", "set transformer_impl=auto, or fp8.recipe=null"
            raise ValueError(rule_message(rule, got="transformer_impl=local", cure=cure))
        if dtype != "bfloat16":
            rule = "fp8 rounds products of bf16 weights and activations"
            raise ValueError(rule_message(rule, got=f"dtype={dtype}", cure="set dtype=bfloat16, or fp8.recipe=null"))

    def _chosen(self, device_type: str, *, dtype: str) -> str:
        # float32 is asked for where numbers are compared; Transformer Engine's products may round it to TF32.
        suits = device_type == "cuda" and dtype == "bfloat16"
        may = self.transformer_impl == AUTO and suits and has_extra("te")
        return TRANSFORMER_ENGINE if self.needs_transformer_engine or may else LOCAL
