"""NeMo-Aligner's reward model, which here are the verifiers."""

from __future__ import annotations

import torch


class FinishedRewards:
    """A ``FutureResult`` of rewards that are known."""

    def __init__(self, rewards_R1: torch.Tensor) -> None:
        self._rewards_R1 = rewards_R1

    def result(self) -> torch.Tensor:
        """Rewards ``[R, 1]``."""
        return self._rewards_R1


class VerifierRewardModel:
    """NeMo-Aligner's reward model: the verifiers, which judge every rollout when it ends and again where they fail.

    The resampling of a step starts on their word while other rollouts still run, so no other reward model can take their
    place afterwards.
    """

    def infer_rm(self, rollout_batch: dict[str, torch.Tensor]) -> FinishedRewards:
        """Rewards of a batch that ``infer`` returned."""
        return FinishedRewards(rollout_batch["rewards"].unsqueeze(1))
