"""The policy loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nemo_axpo.config.sections.base import NonNegative, Positive, Probability, Section


class LossConfig(Section):
    """Clipped surrogate and KL (Eq. 5-6)."""

    clip_low: Probability = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: NonNegative = 0.4
    """The ratio is clipped above 1 + clip_high."""
    kl_coef: NonNegative = 1e-3
    """β: weight of the KL to the fixed reference policy; 0 turns it off."""
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Mean over the step's unmasked tokens, or over rows with the constant 1/(B·N)."""
    mismatch: Literal["none", "truncated_importance_sampling", "sequence_masking"] = "none"
    """Weights of the surrogate where engine and trainer give a token different probabilities."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Truncated importance sampling: largest weight of a token."""
    row_limit: Positive = 0.01
    """Sequence masking: largest mean difference of a row that is kept, in nats per token."""
