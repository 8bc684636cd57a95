"""The modules megatron's wrappers subclass, with the parameters of Transformer Engine's (``module/*.py`` of version 2)."""

from unittest.mock import MagicMock

import torch

from transformer_engine.pytorch import distributed, fp8, tensor

__all__ = [
    "DotProductAttention", "GroupedLinear", "LayerNorm", "LayerNormLinear", "Linear", "RMSNorm", "distributed", "fp8", "ops",
    "tensor",
]  # fmt: skip
ops = MagicMock()
"""Fused operations: named in annotations alone."""


class _Module(torch.nn.Module):
    """Every module of Transformer Engine has an extra state, bytes of FP8 histories."""

    def get_extra_state(self):
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        pass


class Linear(_Module):
    """``weight`` and ``bias``, this rank's share of them."""

    def __init__(
        self, in_features, out_features, *, bias=True, parallel_mode=None, tp_size=1, params_dtype=None, **unused
    ):
        super().__init__()
        rows = out_features // tp_size if parallel_mode == "column" else out_features
        columns = in_features // tp_size if parallel_mode == "row" else in_features
        self.weight = torch.nn.Parameter(torch.empty(rows, columns, dtype=params_dtype))
        self.use_bias = bias
        self.bias = torch.nn.Parameter(torch.empty(rows, dtype=params_dtype)) if bias else torch.empty(0)


class LayerNormLinear(Linear):
    """A norm in front: ``layer_norm_weight``, and ``layer_norm_bias`` of a LayerNorm."""

    def __init__(self, in_features, out_features, *, normalization="LayerNorm", params_dtype=None, **options):
        super().__init__(in_features, out_features, params_dtype=params_dtype, **options)
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(in_features, dtype=params_dtype))
        if normalization == "LayerNorm":
            self.layer_norm_bias = torch.nn.Parameter(torch.zeros(in_features, dtype=params_dtype))


class RMSNorm(_Module):
    """``weight``."""

    def __init__(self, hidden_size=None, *, normalized_shape=None, params_dtype=None, dtype=None, **unused):
        super().__init__()
        size, kind = hidden_size or normalized_shape, params_dtype or dtype
        self.weight = torch.nn.Parameter(torch.ones(size, dtype=kind))


class LayerNorm(RMSNorm):
    """``weight`` and ``bias``."""

    def __init__(self, hidden_size=None, **options):
        super().__init__(hidden_size, **options)
        self.bias = torch.nn.Parameter(torch.zeros_like(self.weight))


class DotProductAttention(_Module):
    """No parameters."""

    def __init__(self, *arguments, **options):
        super().__init__()


class GroupedLinear(_Module):
    """Of experts, which a dense model has none of."""
