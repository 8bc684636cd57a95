"""Test doubles of megatron's Transformer Engine modules: their arguments and parameter names, in plain torch.

``TELayerNormColumnParallelLinear`` has ``layer_norm_weight`` and ``weight``, ``TERowParallelLinear`` ``weight``, ``TENorm``
``weight``. What they compute is what Transformer Engine documents; how is not theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from nemo_axpo.models.qwen3_vl.layer_specs import RMSNorm
from nemo_axpo.models.qwen3_vl.te_specs import TransformerEngineParts


class NormLinearDouble(ColumnParallelLinear):
    """A projection with an RMS norm in front of it."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **arguments: Any) -> None:
        super().__init__(input_size, output_size, config=config, **arguments)
        self.eps = config.layernorm_epsilon
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))
        self.layer_norm_weight.sequence_parallel = config.sequence_parallel

    def forward(self, states: Tensor) -> tuple[Tensor, None]:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return super().forward(self.layer_norm_weight * wide.to(states.dtype))


class RowLinearDouble(RowParallelLinear):
    """A projection whose input is shared over the ranks."""


class NormDouble(RMSNorm):
    """An RMS norm."""


PARTS = TransformerEngineParts(NormLinearDouble, RowLinearDouble, NormDouble)
