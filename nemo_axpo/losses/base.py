"""What the actor asks of a loss. Everything a loss returns is a sum, so that micro-batches and ranks simply add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

TOKEN_COUNT = "num_loss_tokens"
"""The metric that counts unmasked tokens; every other metric is a sum over them."""


@dataclass(frozen=True)
class LossOutput:
    """Loss and metrics of one micro-batch."""

    loss: Tensor
    """Scalar: this micro-batch's share of the step's loss, already divided by the step's normalizer."""
    metrics: dict[str, Tensor]
    """Float64 scalars without gradient: sums over unmasked tokens, and their number under ``num_loss_tokens``."""


class StepSize(Protocol):
    """How large an optimizer step of the whole job is; a ``TrainBatch`` is one where it holds the whole step."""

    @property
    def num_loss_tokens(self) -> int:
        """Unmasked tokens of all replicas, also those of rows dropped for lack of signal."""

    @property
    def num_planned_rollouts(self) -> int:
        """B·N of the optimizer step."""


class Loss(Protocol):
    """A loss over rows ``[B, S]``; position t speaks of predicting token t."""

    @property
    def needs_old(self) -> bool:
        """Whether the loss reads the log-probs of the policy before the step's first optimizer step."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads the log-probs of the fixed reference policy."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of every metric that the loss returns: ranks without a micro-batch need them too."""

    def normalizer_of(self, step: StepSize) -> float:
        """The constant by which every micro-batch of the step is divided."""

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
        """Loss of one micro-batch; padding and untrained tokens are False in ``mask_BS``."""


def mean_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Token means from metrics summed over all micro-batches and ranks; the token count stays a count."""
    num_tokens = float(sums[TOKEN_COUNT])
    assert num_tokens > 0, "no unmasked token was trained"
    means = {name: float(value) / num_tokens for name, value in sums.items() if name != TOKEN_COUNT}
    return {**means, TOKEN_COUNT: num_tokens}
