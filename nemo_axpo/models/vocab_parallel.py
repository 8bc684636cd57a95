"""Log-probabilities of given tokens from logits whose vocabulary is spread over tensor-parallel ranks.

The cross entropy is unfused, in float32 throughout: megatron's fused one rounds its backward to bf16, 1e-3 off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_IMPOSSIBLE = -1e30
"""Logit of a banned token: its probability is exactly 0, and unlike -inf it leaves 0 · logit a number."""


@dataclass(frozen=True)
class VocabShard:
    """This rank's part of the vocabulary, and how the sampler narrows the distribution."""

    first_id: int
    """Token id of the first local column."""
    bias_V: Tensor
    """float32 ``[V / tp]``: 0, or a huge negative number at banned ids."""
    group: Any = None
    """Tensor-parallel process group; None for one rank."""

    @classmethod
    def of(
        cls, vocab_size: int, *, banned_ids: Iterable[int], rank: int = 0, size: int = 1, group: Any = None
    ) -> VocabShard:
        """Shard ``rank`` of ``size`` equal ones; ``banned_ids`` are the ids the engine never samples."""
        bias_V = torch.zeros(vocab_size)
        bias_V[list(banned_ids)] = _IMPOSSIBLE
        width = vocab_size // size
        return cls(rank * width, bias_V[rank * width : (rank + 1) * width].clone(), group if size > 1 else None)

    def to(self, device: torch.device) -> VocabShard:
        """The same shard on ``device``."""
        return VocabShard(self.first_id, self.bias_V.to(device), self.group)


def token_logprobs(
    logits_LV: Tensor, *, targets_L: Tensor, inverse_temperature_L: Tensor, shard: VocabShard
) -> tuple[Tensor, Tensor]:
    """Natural-log probability of each target (differentiable) and entropy in nats (not), both float32 ``[L]``.

    The distribution is the engine's: logits divided by the temperature, banned ids impossible. ``logits_LV``:
    ``[L, V / tp]``, any floating dtype; equal results on every tensor-parallel rank.
    """
    return _TokenLogprobs.apply(logits_LV, targets_L, inverse_temperature_L.unsqueeze(1), shard)


class _TokenLogprobs(torch.autograd.Function):
    """``log softmax(x)[target]``; d/dx = onehot(target) - softmax(x)."""

    @staticmethod
    def forward(
        ctx: Any, logits_LV: Tensor, targets_L: Tensor, scale_L1: Tensor, shard: VocabShard
    ) -> tuple[Tensor, Tensor]:
        scaled_LV = torch.addcmul(shard.bias_V, logits_LV.float(), scale_L1)
        scaled_LV -= _reduced(scaled_LV.amax(dim=-1), dist.ReduceOp.MAX, shard).unsqueeze(1)
        columns_L, is_local_L = _local_columns(targets_L, shard)
        target_L = scaled_LV.gather(1, columns_L.unsqueeze(1)).squeeze(1).masked_fill_(~is_local_L, 0.0)
        probs_LV = scaled_LV.exp()
        mass_L, weighted_L = probs_LV.sum(dim=-1), torch.linalg.vecdot(probs_LV, scaled_LV)
        target_L, mass_L, weighted_L = _reduced(
            torch.stack((target_L, mass_L, weighted_L)), dist.ReduceOp.SUM, shard
        ).unbind(0)
        probs_LV /= mass_L.unsqueeze(1)
        ctx.save_for_backward(probs_LV, columns_L, is_local_L, scale_L1)
        ctx.logits_dtype = logits_LV.dtype
        entropy_L = mass_L.log() - weighted_L / mass_L
        ctx.mark_non_differentiable(entropy_L)
        return target_L - mass_L.log(), entropy_L

    @staticmethod
    def backward(ctx: Any, grad_L: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        probs_LV, columns_L, is_local_L, scale_L1 = ctx.saved_tensors
        grad_L1 = grad_L.unsqueeze(1) * scale_L1
        grad_LV = probs_LV * -grad_L1
        grad_LV.scatter_add_(1, columns_L.unsqueeze(1), grad_L1 * is_local_L.unsqueeze(1))
        return grad_LV.to(ctx.logits_dtype), None, None, None


def _local_columns(targets_L: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Column of each target on this rank (0 where another rank has it) and whether this rank has it."""
    columns_L = targets_L - shard.first_id
    is_local_L = (columns_L >= 0) & (columns_L < shard.bias_V.numel())
    return columns_L.masked_fill(~is_local_L, 0), is_local_L


def _reduced(values: Tensor, op: dist.ReduceOp, shard: VocabShard) -> Tensor:
    if shard.group is not None:
        dist.all_reduce(values, op=op, group=shard.group)
    return values
