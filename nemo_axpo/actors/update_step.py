"""Loss and metrics of the micro-batches of one optimizer step.

Metrics leave a micro-batch as sums over its trained tokens, so that micro-batches and data-parallel ranks add up; a
name that ends in ``_max`` is a maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from nemo_axpo.actors.microbatches import Microbatch
from nemo_axpo.actors.training_step import microbatch_logprobs
from nemo_axpo.losses.base import TOKEN_COUNT, Loss, mean_metrics
from nemo_axpo.models.vocab_parallel import VocabShard

_LOSS = "loss"


@dataclass(frozen=True)
class UpdateStep:
    """What every micro-batch of the step is scored with."""

    microbatches: Sequence[Microbatch]
    loss: Loss
    normalizer: float
    """The loss's constant of the whole step."""
    shard: VocabShard
    old_logprobs: Sequence[Tensor] | None
    """Per sample of the step ``[T]``; None where old and current policy are the same."""
    reference_BS: Sequence[Tensor | None]
    """Per micro-batch; None where the loss needs no reference."""

    def __call__(self, number: int, logits_LV: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of micro-batch ``number`` and its metric sums."""
        microbatch = self.microbatches[number]
        logprobs_L, entropy_L = microbatch_logprobs(microbatch, logits_LV, shard=self.shard)
        old_BS = None if self.old_logprobs is None else microbatch.gather_rows(self.old_logprobs)
        output = self.loss(
            logprobs_BS=microbatch.spread(logprobs_L),
            old_logprobs_BS=old_BS,
            ref_logprobs_BS=self.reference_BS[number],
            advantages_BS=microbatch.advantages_BS,
            mask_BS=microbatch.mask_BS,
            normalizer=self.normalizer,
        )
        sums = {**output.metrics, "entropy": entropy_L.sum(), _LOSS: output.loss.detach()}
        if self.loss.needs_old:
            trainer_L = logprobs_L.detach() if old_BS is None else old_BS[microbatch.mask_BS]
            sums |= engine_difference(trainer_L, engine_L=microbatch.engine_logprobs_BS[microbatch.mask_BS])
        return output.loss, sums


def engine_difference(trainer_L: Tensor, *, engine_L: Tensor) -> dict[str, Tensor]:
    """How far the trainer's log-probs are from the engine's that sampled the tokens: two sums and a maximum.

    ``kl`` is the k3 estimate of KL(engine‖trainer): per token ``exp(d) - d - 1`` with ``d = trainer - engine``.
    """
    difference_L = trainer_L - engine_L
    return {
        "engine/logprob_diff_mean": difference_L.abs().sum(),
        "engine/kl": (difference_L.exp() - difference_L - 1).sum(),
        "engine/logprob_diff_max": difference_L.abs().amax(),
    }


def step_metrics(results: Sequence[Mapping[str, Tensor]], *, is_reporter: bool) -> dict[str, float]:
    """Metrics of the whole step from those of this rank's micro-batches; equal on every rank.

    ``is_reporter``: one rank of each model replica's last stage, so that nothing counts twice.
    """
    local = [{name: float(value) for name, value in result.items()} for result in results] if is_reporter else []
    gathered: list[list[dict[str, float]]] = [local]
    if dist.get_world_size() > 1:
        gathered = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, local)
    sums = _combine(result for rank in gathered for result in rank)
    loss, maxima = sums.pop(_LOSS), {name: sums.pop(name) for name in list(sums) if name.endswith("_max")}
    means = {**mean_metrics(sums), **maxima, _LOSS: loss}
    return {name if "/" in name else f"update/{name}": value for name, value in means.items()}


def _combine(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    combined: dict[str, float] = {}
    for result in results:
        for name, value in result.items():
            known = combined.get(name)
            if known is None:
                combined[name] = value
            else:
                combined[name] = max(known, value) if name.endswith("_max") else known + value
    assert TOKEN_COUNT in combined, "every loss counts its tokens"
    return combined
