"""What to do where the engine that sampled a token and the trainer give it different probabilities.

The surrogate's expectation is over what the engine sampled; where its distribution is not the trainer's (bf16 kernels, FP8,
stale weights) the gradient is biased. With ``d = log π_old - log π_engine`` of a sampled token, a correction multiplies
the token's surrogate by a weight without gradient:

    none                             1
    truncated_importance_sampling    min(exp(d), cap)                         per token
    sequence_masking                 1 if |mean of d over the row| <= limit   else 0, for the whole row

Sources: F. Yao et al., Your efficient RL framework secretly brings you off-policy RL training (2025), for the first;
J. Liu et al., When speed kills stability (2025), for masks on the geometric mean of a row's ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class MismatchCorrection(Protocol):
    """Weights of the surrogate, ``[B, S]`` without gradient."""

    def __call__(self, *, old_BS: Tensor, engine_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """``old_BS`` and ``engine_BS``: natural-log probabilities, read where ``mask_BS`` is True."""


@dataclass(frozen=True)
class NoCorrection:
    """The surrogate as it is; the difference is only measured."""

    def __call__(self, *, old_BS: Tensor, engine_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(old_BS)


@dataclass(frozen=True)
class TruncatedImportanceSampling:
    """Unbiased below the cap; above it a token counts ``cap`` times, so that no single token rules a step."""

    cap: float = 2.0

    def __post_init__(self) -> None:
        if not self.cap >= 1:
            raise ValueError(f"the cap of importance weights must be at least 1; got {self.cap}: 2 is usual")

    def __call__(self, *, old_BS: Tensor, engine_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """``min(exp(d), cap)``; 1 at masked tokens."""
        return _difference(old_BS, engine_BS=engine_BS, mask_BS=mask_BS).exp().clamp(max=self.cap)


@dataclass(frozen=True)
class SequenceMasking:
    """Leaves out whole rows on which engine and trainer disagree; their KL term and their count stay."""

    limit: float = 0.01
    """Largest mean difference of a row in nats per token; the geometric mean of its ratios is then within exp(±limit)."""

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"the limit of a row's mean difference must be positive; got {self.limit}: 0.01 is usual")

    def __call__(self, *, old_BS: Tensor, engine_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """1 in rows within the limit, 0 in the others."""
        difference_BS = _difference(old_BS, engine_BS=engine_BS, mask_BS=mask_BS)
        mean_B1 = difference_BS.sum(dim=1, keepdim=True) / mask_BS.sum(dim=1, keepdim=True).clamp(min=1)
        return (mean_B1.abs() <= self.limit).to(old_BS.dtype).expand_as(old_BS)


NONE, TIS, MASKING = "none", "truncated_importance_sampling", "sequence_masking"


def build_correction(name: str, *, importance_cap: float, row_limit: float) -> MismatchCorrection:
    """The correction called ``name``; ValueError that lists the known names otherwise."""
    known = {
        NONE: NoCorrection,
        TIS: lambda: TruncatedImportanceSampling(importance_cap),
        MASKING: lambda: SequenceMasking(row_limit),
    }
    if name not in known:
        raise ValueError(f"the mismatch correction must be one of: {', '.join(known)}; got {name!r}: use one of these")
    return known[name]()


def _difference(old_BS: Tensor, *, engine_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """``d``, and 0 at masked tokens, whatever stands there."""
    return (old_BS.detach() - engine_BS).masked_fill(~mask_BS, 0.0)
