"""Supervised fine-tuning: negative log-likelihood of the unmasked tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nemo_axpo.losses.aggregation import get_aggregation, weighted_sum
from nemo_axpo.losses.base import TOKEN_COUNT, LossOutput, StepSize


@dataclass(frozen=True)
class SupervisedLoss:
    """``-(1 / normalizer) · Σ weight · log π(token)`` over one micro-batch ``[B, S]``."""

    aggregation: str = "token_mean"
    """``token_mean`` or ``sequence_mean`` (see ``losses.aggregation``)."""

    def __post_init__(self) -> None:
        get_aggregation(self.aggregation)

    @property
    def needs_old(self) -> bool:
        """No ratio is taken."""
        return False

    @property
    def needs_reference(self) -> bool:
        """No KL term."""
        return False

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What :meth:`__call__` measures."""
        return ("nll", TOKEN_COUNT)

    def normalizer_of(self, step: StepSize) -> float:
        """The constant of the step under this loss's aggregation."""
        return get_aggregation(self.aggregation).normalizer_of(step)

    def __call__(
        self,
        *,
        logprobs_BS: Tensor,
        mask_BS: Tensor,
        normalizer: float,
        old_logprobs_BS: Tensor | None = None,
        ref_logprobs_BS: Tensor | None = None,
        advantages_BS: Tensor | None = None,
        engine_logprobs_BS: Tensor | None = None,
    ) -> LossOutput:
        """Loss and the token sum of the negative log-likelihood; only log-probs, mask and normalizer are read."""
        nll_BS = -logprobs_BS.masked_fill(~mask_BS, 0.0)
        aggregation = get_aggregation(self.aggregation)
        loss = weighted_sum(nll_BS, mask_BS=mask_BS, aggregation=aggregation, normalizer=normalizer)
        return LossOutput(loss, {"nll": nll_BS.detach().double().sum(), TOKEN_COUNT: mask_BS.sum().double()})
