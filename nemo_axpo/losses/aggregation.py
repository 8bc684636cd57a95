"""How per-token losses become one number: ``sum(weights * losses) / normalizer`` with a constant of the whole step.

    token_mean      weight 1 per unmasked token             normalizer: unmasked tokens of the step
    sequence_mean   weight 1 / (row's unmasked tokens)      normalizer: B·N planned rollouts

With ``sequence_mean`` a selected source contributes the mean over its prefix plus, for each of its K continuations, the
mean over that continuation (Eq. 5), all over the constant B·N: the extra rows do not dilute the ordinary ones, and no
average over N + K rows is ever taken.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nemo_axpo.losses.base import StepSize


class Aggregation(Protocol):
    """Token weights of a micro-batch and the constant of the step they are divided by."""

    def token_weights(self, mask_BS: Tensor, *, like: Tensor) -> Tensor:
        """Weights ``[B, S]`` in the dtype of ``like``, 0 where ``mask_BS`` is False. A row is never split."""

    def normalizer_of(self, step: StepSize) -> float:
        """The constant of the whole step, over all micro-batches and ranks."""


class TokenMean:
    """Mean over all unmasked tokens of the step."""

    def token_weights(self, mask_BS: Tensor, *, like: Tensor) -> Tensor:
        """1 at every unmasked token."""
        return mask_BS.to(like.dtype)

    def normalizer_of(self, step: StepSize) -> float:
        """Unmasked tokens of the step, also those of rows dropped for lack of signal."""
        return float(step.num_loss_tokens)


class SequenceMean:
    """Sum over rows of the row's token mean, divided by B·N."""

    def token_weights(self, mask_BS: Tensor, *, like: Tensor) -> Tensor:
        """1 / (unmasked tokens of the row); a row without any contributes 0."""
        num_tokens_B1 = mask_BS.sum(dim=-1, keepdim=True).clamp(min=1)
        return mask_BS.to(like.dtype) / num_tokens_B1.to(like.dtype)

    def normalizer_of(self, step: StepSize) -> float:
        """B·N planned rollouts: lost rollouts and continuations do not change it."""
        return float(step.num_planned_rollouts)


_AGGREGATIONS: dict[str, Aggregation] = {"token_mean": TokenMean(), "sequence_mean": SequenceMean()}


def get_aggregation(name: str) -> Aggregation:
    """The aggregation called ``name``; ValueError that lists the known names otherwise."""
    if name not in _AGGREGATIONS:
        known = ", ".join(sorted(_AGGREGATIONS))
        raise ValueError(f"aggregation must be one of: {known}; got {name!r}: use one of these")
    return _AGGREGATIONS[name]


def normalizer_of(step: StepSize, *, aggregation: str) -> float:
    """The constant by which the losses of all micro-batches of ``step`` are divided."""
    return get_aggregation(aggregation).normalizer_of(step)


def weighted_sum(losses_BS: Tensor, *, mask_BS: Tensor, aggregation: Aggregation, normalizer: float) -> Tensor:
    """``sum(weights * losses) / normalizer``, a scalar; ``losses_BS`` must be finite at masked tokens."""
    assert normalizer > 0, f"the normalizer of a step is a positive count, got {normalizer}"
    return (aggregation.token_weights(mask_BS, like=losses_BS) * losses_BS).sum() / normalizer
