"""Token-level clipped surrogate with an asymmetric clip and a KL term to the fixed reference policy (Eq. 5-6).

    L = -(1 / normalizer) · Σ weight · [ min(ρ·Â, clip(ρ, 1 - clip_low, 1 + clip_high)·Â) - kl_coef · KL(π‖π_ref) ]

KL acts on the same tokens as the clipped term. What a row's advantage is and which of its tokens are trained was
decided before (``Credit``, ``TrainingSample``): the loss knows no algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_axpo.losses.aggregation import get_aggregation, weighted_sum
from nemo_axpo.losses.base import TOKEN_COUNT, LossOutput, StepSize
from nemo_axpo.losses.kl import kl_k3
from nemo_axpo.losses.mismatch import NONE, MismatchCorrection, build_correction


@dataclass(frozen=True)
class PolicyLoss:
    """The policy loss of one micro-batch ``[B, S]``; the defaults are the paper's."""

    clip_low: float = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float = 0.4
    """The ratio is clipped above 1 + clip_high."""
    kl_coef: float = 1e-3
    """β of Eq. 6; with 0 the reference policy is not needed."""
    aggregation: str = "token_mean"
    """``token_mean`` or ``sequence_mean`` (see ``losses.aggregation``)."""
    mismatch: str = NONE
    """Weights where engine and trainer differ (see ``losses.mismatch``); the paper has none."""
    importance_cap: float = 2.0
    """Of ``truncated_importance_sampling``."""
    row_limit: float = 0.01
    """Of ``sequence_masking``: nats per token."""

    def __post_init__(self) -> None:
        get_aggregation(self.aggregation)
        self._correction()
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low must lie in [0, 1]; got {self.clip_low}: the paper uses 0.2")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high must not be negative; got {self.clip_high}: the paper uses 0.4")
        if not self.kl_coef >= 0:
            raise ValueError(f"kl_coef must not be negative; got {self.kl_coef}: the paper uses 1e-3, 0 is off")

    @property
    def needs_old(self) -> bool:
        """True; None is right where the batch is one optimizer step (old and current policy are the same)."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether the KL term is on."""
        return self.kl_coef > 0

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What :meth:`__call__` measures."""
        names = ("policy_loss", "kl", "clip_fraction", "ratio_mean", TOKEN_COUNT)
        return names if self.mismatch == NONE else (*names, "mismatch_weight")

    def normalizer_of(self, step: StepSize) -> float:
        """The constant of the step under this loss's aggregation."""
        return get_aggregation(self.aggregation).normalizer_of(step)

    def __call__(
        self,
        *,
        logprobs_BS: Tensor,
        old_logprobs_BS: Tensor | None,
        ref_logprobs_BS: Tensor | None,
        advantages_BS: Tensor,
        mask_BS: Tensor,
        normalizer: float,
        engine_logprobs_BS: Tensor | None = None,
    ) -> LossOutput:
        """Loss and token-sum metrics. All tensors ``[B, S]``, natural log; ``mask_BS`` is bool.

        Without ``old_logprobs_BS`` the policy is exactly on-policy: the ratio is 1, its gradient that of the log-prob.
        ``engine_logprobs_BS`` are read where ``mismatch`` asks for a correction. Values at masked positions are never read, so they may be anything, infinities included.
        """
        logprobs_BS = logprobs_BS.masked_fill(~mask_BS, 0.0)
        old_BS = logprobs_BS if old_logprobs_BS is None else old_logprobs_BS.masked_fill(~mask_BS, 0.0)
        ratio_BS = (logprobs_BS - old_BS.detach()).exp()
        surrogate_BS, clipped_BS = self._surrogate(ratio_BS, advantages_BS=advantages_BS.masked_fill(~mask_BS, 0.0))
        terms = {"clip_fraction": clipped_BS, "ratio_mean": ratio_BS}
        if self.mismatch != NONE:
            assert engine_logprobs_BS is not None, "a mismatch correction reads the engine's log-probs"
            weight_BS = self._correction()(old_BS=old_BS, engine_BS=engine_logprobs_BS, mask_BS=mask_BS)
            surrogate_BS, terms["mismatch_weight"] = weight_BS * surrogate_BS, weight_BS
        kl_BS = self._kl(logprobs_BS, ref_logprobs_BS=ref_logprobs_BS, mask_BS=mask_BS)
        loss = weighted_sum(
            self.kl_coef * kl_BS - surrogate_BS,
            mask_BS=mask_BS,
            aggregation=get_aggregation(self.aggregation),
            normalizer=normalizer,
        )
        terms |= {"policy_loss": -surrogate_BS, "kl": kl_BS}
        return LossOutput(loss, {**_token_sums(terms, mask_BS=mask_BS), TOKEN_COUNT: mask_BS.sum().double()})

    def _correction(self) -> MismatchCorrection:
        return build_correction(self.mismatch, importance_cap=self.importance_cap, row_limit=self.row_limit)

    def _surrogate(self, ratio_BS: Tensor, *, advantages_BS: Tensor) -> tuple[Tensor, Tensor]:
        """``min(ρ·Â, clip(ρ)·Â)`` and where the clip was the smaller of the two, both ``[B, S]``."""
        unclipped_BS = ratio_BS * advantages_BS
        clipped_BS = ratio_BS.clamp(1.0 - self.clip_low, 1.0 + self.clip_high) * advantages_BS
        return torch.minimum(unclipped_BS, clipped_BS), clipped_BS < unclipped_BS

    def _kl(self, logprobs_BS: Tensor, *, ref_logprobs_BS: Tensor | None, mask_BS: Tensor) -> Tensor:
        if not self.needs_reference:
            return torch.zeros_like(logprobs_BS)
        assert ref_logprobs_BS is not None, "kl_coef > 0 needs the log-probs of the reference policy"
        return kl_k3(logprobs_BS, ref_logprobs=ref_logprobs_BS.masked_fill(~mask_BS, 0.0))


def _token_sums(terms_BS: dict[str, Tensor], *, mask_BS: Tensor) -> dict[str, Tensor]:
    """Sum of every term over the unmasked tokens, without gradient, in float64 so that counts stay exact."""
    return {name: term_BS.detach()[mask_BS].double().sum() for name, term_BS in terms_BS.items()}
