"""Log-probabilities of given tokens under a vocabulary that is spread over tensor-parallel ranks.

The cross entropy is unfused, in float32 throughout: megatron's fused one rounds its backward to bf16, 1e-3 off. Logits are
the largest tensors of a step (4096 tokens of a vocabulary of 151 936: 2.3 GiB in float32, several times over), so beyond a
bound they are made chunk by chunk: the forward pass keeps hidden states alone, the backward pass makes each chunk again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_IMPOSSIBLE = -1e30
"""Logit of a banned token: its probability is exactly 0, and unlike -inf it leaves 0 · logit a number."""


_MAX_LOGITS = 2**27
"""Logits of one chunk where the configuration does not say: 512 MiB in float32."""


@dataclass(frozen=True)
class OutputStates:
    """What a model's last stage gives: hidden states, and the projection that makes logits of them."""

    hidden_LH: Tensor
    """One row per loss position; its gradient is summed over tensor-parallel ranks behind it."""
    weight_VH: Tensor
    """``[V / tp, H]``."""

    def logits(self) -> Tensor:
        """``[L, V / tp]``, all at once."""
        return F.linear(self.hidden_LH, self.weight_VH)


@dataclass(frozen=True)
class VocabShard:
    """This rank's part of the vocabulary, and how the sampler narrows the distribution."""

    first_id: int
    """Token id of the first local column."""
    bias_V: Tensor
    """float32 ``[V / tp]``: 0, or a huge negative number at banned ids."""
    group: Any = None
    """Tensor-parallel process group; None for one rank."""
    chunk_tokens: int = 2**62
    """Most tokens whose logits exist at the same time."""

    @classmethod
    def of(
        cls,
        vocab_size: int,
        *,
        banned_ids: Iterable[int],
        rank: int = 0,
        size: int = 1,
        group: Any = None,
        chunk_tokens: int | None = None,
    ) -> VocabShard:
        """Shard ``rank`` of ``size`` equal ones; ``banned_ids`` are the ids the engine never samples.

        ``chunk_tokens``: None for as many as keep a chunk's float32 logits within 512 MiB.
        """
        bias_V = torch.zeros(vocab_size)
        bias_V[list(banned_ids)] = _IMPOSSIBLE
        width = vocab_size // size
        own_V = bias_V[rank * width : (rank + 1) * width].clone()
        return cls(rank * width, own_V, group if size > 1 else None, chunk_tokens or max(1, _MAX_LOGITS // width))

    def to(self, device: torch.device) -> VocabShard:
        """The same shard on ``device``."""
        return replace(self, bias_V=self.bias_V.to(device))


def output_logprobs(
    output: OutputStates, *, targets_L: Tensor, inverse_temperature_L: Tensor, shard: VocabShard
) -> tuple[Tensor, Tensor]:
    """As :func:`token_logprobs` of ``output.logits()``, of which at most ``shard.chunk_tokens`` rows exist at a time.

    Chunk by chunk, the projection's gradient is added to its ``main_grad`` where megatron's DDP gave it one: a gradient
    tensor of a whole vocabulary in bf16 would round every chunk's share.
    """
    if len(targets_L) <= shard.chunk_tokens:
        return token_logprobs(
            output.logits(), targets_L=targets_L, inverse_temperature_L=inverse_temperature_L, shard=shard
        )
    scale_L1 = inverse_temperature_L.unsqueeze(1)
    return _ChunkedLogprobs.apply(output.hidden_LH, output.weight_VH, targets_L, scale_L1, shard)


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
        found = _find(_scaled(logits_LV, scale_L1=scale_L1, shard=shard), targets_L=targets_L, shard=shard)
        found.probs_LV.div_(found.mass_L.unsqueeze(1))
        ctx.save_for_backward(found.probs_LV, targets_L, scale_L1)
        ctx.logits_dtype, ctx.shard = logits_LV.dtype, shard
        ctx.mark_non_differentiable(found.entropy_L)
        return found.logprobs_L, found.entropy_L

    @staticmethod
    def backward(ctx: Any, grad_L: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        probs_LV, targets_L, scale_L1 = ctx.saved_tensors
        grad_LV = _logits_gradient(probs_LV, grad_L.unsqueeze(1) * scale_L1, targets_L, shard=ctx.shard)
        return grad_LV.to(ctx.logits_dtype), None, None, None


class _ChunkedLogprobs(torch.autograd.Function):
    """:class:`_TokenLogprobs` of ``hidden · weightᵀ``, chunk by chunk; keeps one normaliser per token for backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden_LH: Tensor, weight_VH: Tensor, targets_L: Tensor, scale_L1: Tensor, shard: VocabShard
    ) -> tuple[Tensor, Tensor]:
        outputs = [
            _find(
                _scaled(F.linear(hidden_LH[part], weight_VH), scale_L1=scale_L1[part], shard=shard),
                targets_L=targets_L[part],
                shard=shard,
            ).without_probs()
            for part in _parts(len(targets_L), size=shard.chunk_tokens)
        ]
        logprobs_L, entropy_L, log_normalizer_L = (torch.cat(pieces) for pieces in zip(*outputs))
        ctx.save_for_backward(hidden_LH, weight_VH, targets_L, scale_L1, log_normalizer_L)
        ctx.shard = shard
        ctx.mark_non_differentiable(entropy_L)
        return logprobs_L, entropy_L

    @staticmethod
    def backward(ctx: Any, grad_L: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_LH, weight_VH, targets_L, scale_L1, log_normalizer_L = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_LH = torch.empty_like(hidden_LH) if needs_hidden else None
        grad_weight_VH = _weight_gradient(weight_VH) if needs_weight else None
        for part in _parts(len(targets_L), size=ctx.shard.chunk_tokens):
            scaled_CV = _scaled(F.linear(hidden_LH[part], weight_VH), scale_L1=scale_L1[part], shard=ctx.shard)
            probs_CV = scaled_CV.sub_(log_normalizer_L[part].unsqueeze(1)).exp_()
            grad_C1 = grad_L[part].unsqueeze(1) * scale_L1[part]
            grad_CV = _logits_gradient(probs_CV, grad_C1, targets_L[part], shard=ctx.shard, out=probs_CV)
            grad_CV = grad_CV.to(hidden_LH.dtype)
            if needs_hidden:
                torch.mm(grad_CV, weight_VH, out=grad_hidden_LH[part])
            if needs_weight:
                _add_product(grad_weight_VH, grad_CV.t(), hidden_LH[part])
        is_added = needs_weight and grad_weight_VH is getattr(weight_VH, "main_grad", None)
        return grad_hidden_LH, None if is_added else grad_weight_VH, None, None, None


class _Found(NamedTuple):
    """The forward pass of some tokens."""

    logprobs_L: Tensor
    entropy_L: Tensor
    mass_L: Tensor
    """Sum of ``probs_LV`` over the vocabulary of all ranks."""
    max_L: Tensor
    """Largest scaled logit of all ranks."""
    probs_LV: Tensor
    """``exp(scaled logit - max)``."""

    def without_probs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, entropies, and the logarithm of the softmax's denominator."""
        return self.logprobs_L, self.entropy_L, self.max_L + self.mass_L.log()


def _scaled(logits_LV: Tensor, *, scale_L1: Tensor, shard: VocabShard) -> Tensor:
    """The sampler's logits, float32: divided by the temperature, banned ids impossible."""
    return torch.addcmul(shard.bias_V, logits_LV.float(), scale_L1)


def _find(scaled_LV: Tensor, *, targets_L: Tensor, shard: VocabShard) -> _Found:
    """Overwrites ``scaled_LV``."""
    max_L = _reduced(scaled_LV.amax(dim=-1), dist.ReduceOp.MAX, shard)
    scaled_LV -= max_L.unsqueeze(1)
    columns_L, is_local_L = _local_columns(targets_L, shard)
    target_L = scaled_LV.gather(1, columns_L.unsqueeze(1)).squeeze(1).masked_fill_(~is_local_L, 0.0)
    probs_LV = scaled_LV.exp()
    mass_L, weighted_L = probs_LV.sum(dim=-1), torch.linalg.vecdot(probs_LV, scaled_LV)
    target_L, mass_L, weighted_L = _reduced(
        torch.stack((target_L, mass_L, weighted_L)), dist.ReduceOp.SUM, shard
    ).unbind(0)
    return _Found(target_L - mass_L.log(), mass_L.log() - weighted_L / mass_L, mass_L, max_L, probs_LV)


def _logits_gradient(
    probs_LV: Tensor, grad_L1: Tensor, targets_L: Tensor, *, shard: VocabShard, out: Tensor | None = None
) -> Tensor:
    """``grad · (onehot(target) - softmax)``; ``out`` may be ``probs_LV``."""
    columns_L, is_local_L = _local_columns(targets_L, shard)
    grad_LV = torch.mul(probs_LV, -grad_L1, out=out)
    return grad_LV.scatter_add_(1, columns_L.unsqueeze(1), grad_L1 * is_local_L.unsqueeze(1))


def _weight_gradient(weight_VH: Tensor) -> Tensor:
    """Where the gradient of the projection is summed."""
    main_grad = getattr(weight_VH, "main_grad", None)
    return torch.zeros_like(weight_VH) if main_grad is None else main_grad


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, the product rounded to its own dtype before it is added in that of ``total``."""
    if total.dtype is left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _parts(num_tokens: int, *, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_tokens, size))


def _local_columns(targets_L: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Column of each target on this rank (0 where another rank has it) and whether this rank has it."""
    columns_L = targets_L - shard.first_id
    is_local_L = (columns_L >= 0) & (columns_L < shard.bias_V.numel())
    return columns_L.masked_fill(~is_local_L, 0), is_local_L


def _reduced(values: Tensor, op: dist.ReduceOp, shard: VocabShard) -> Tensor:
    if shard.group is not None:
        dist.all_reduce(values, op=op, group=shard.group)
    return values
