"""Loss and metrics of the micro-batches of one optimizer step.

Metrics leave a micro-batch as sums over its trained tokens, so that micro-batches and data-parallel replicas add up; a
name that ends in ``_max`` is a maximum. Their names follow from the loss, so that ranks without a logit know them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_axpo.actors.microbatches import Microbatch
from nemo_axpo.actors.packing import PackingCounts
from nemo_axpo.actors.training_step import microbatch_logprobs
from nemo_axpo.losses.base import Loss, mean_metrics
from nemo_axpo.models.vocab_parallel import OutputStates, VocabShard
from nemo_axpo.types import TrainBatch

_LOSS, _ENTROPY = "loss", "entropy"
_COUNTS = tuple(f"batch/{field.name}" for field in fields(PackingCounts))
_ENGINE = (
    "engine/logprob_diff_mean",
    "engine/kl",
    "engine/ratio_mean",
    "engine/logprob_diff_max",
    "engine/ratio_max",
)


@dataclass(frozen=True)
class StepCounts:
    """What one optimizer step of the whole job trains on."""

    num_samples: int
    """With a trained token; the others change nothing."""
    num_loss_tokens: int
    """Unmasked tokens, also those of rows dropped for lack of signal."""
    num_planned_rollouts: int
    """B·N of the optimizer step."""


def count_step(batch: TrainBatch, *, device: torch.device) -> StepCounts:
    """Adds up the batches of all replicas: one all-reduce of two integers, in which every rank takes part."""
    num_samples = sum(any(sample.loss_mask) for sample in batch.samples)
    counts = torch.tensor([num_samples, batch.num_loss_tokens], device=device)
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
    num_samples, num_loss_tokens = counts.tolist()
    return StepCounts(num_samples, num_loss_tokens, batch.num_planned_rollouts)


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

    def __call__(self, number: int, output: OutputStates) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of micro-batch ``number`` and its metric sums."""
        microbatch = self.microbatches[number]
        logprobs_L, entropy_L = microbatch_logprobs(microbatch, output, shard=self.shard)
        old_BS = None if self.old_logprobs is None else microbatch.gather_rows(self.old_logprobs)
        result = self.loss(
            logprobs_BS=microbatch.spread(logprobs_L),
            old_logprobs_BS=old_BS,
            ref_logprobs_BS=self.reference_BS[number],
            advantages_BS=microbatch.advantages_BS,
            mask_BS=microbatch.mask_BS,
            normalizer=self.normalizer,
            engine_logprobs_BS=microbatch.engine_logprobs_BS,
        )
        sums = {**result.metrics, _ENTROPY: entropy_L.sum(), _LOSS: result.loss.detach()}
        if self.loss.needs_old:
            trainer_L = logprobs_L.detach() if old_BS is None else old_BS[microbatch.mask_BS]
            sums |= engine_difference(trainer_L, engine_L=microbatch.engine_logprobs_BS[microbatch.mask_BS])
        counts = {
            name: torch.tensor(value, device=logprobs_L.device)
            for name, value in zip(_COUNTS, asdict(microbatch.counts).values())
        }
        return result.loss, sums | counts


def engine_difference(trainer_L: Tensor, *, engine_L: Tensor) -> dict[str, Tensor]:
    """How far the trainer's log-probs are from the engine's that sampled the tokens: three sums and two maxima.

    ``ratio`` is trainer ÷ engine, the importance weight of a token; its mean is 1 where they sample the same. ``kl`` is the k3 estimate of KL(engine‖trainer): per token ``exp(d) - d - 1`` with ``d = trainer - engine``.
    Without a token the sums are 0 and the maxima -inf, which changes nothing in the step's.
    """
    difference_L = trainer_L - engine_L
    ratio_L = difference_L.exp()
    sums = (difference_L.abs().sum(), (ratio_L - difference_L - 1).sum(), ratio_L.sum())
    return dict(zip(_ENGINE, (*sums, _maximum(difference_L.abs()), _maximum(ratio_L)), strict=True))


def _maximum(values_L: Tensor) -> Tensor:
    return values_L.amax() if values_L.numel() else values_L.new_tensor(float("-inf"))


def step_metrics(
    results: Sequence[Mapping[str, Tensor]], *, loss: Loss, is_reporter: bool, device: torch.device
) -> dict[str, float]:
    """Metrics of the whole step from those of this rank's micro-batches; equal on every rank.

    ``is_reporter``: one rank of each model replica's last stage, so that nothing counts twice.
    """
    names = metric_names(loss)
    own_M = _combined(results if is_reporter else [], names=names)
    all_RM = torch.empty(dist.get_world_size(), len(names), dtype=torch.float64, device=device)
    dist.all_gather(list(all_RM.unbind(0)), own_M.to(device))
    totals = dict(zip(names, _reduced(all_RM, names=names).tolist()))
    counts = PackingCounts(*(int(totals.pop(name)) for name in _COUNTS))
    total_loss, maxima = totals.pop(_LOSS), {name: totals.pop(name) for name in names if _is_maximum(name)}
    means = {**mean_metrics(totals), **maxima, **packing_metrics(counts), _LOSS: total_loss}
    return {name if "/" in name else f"update/{name}": value for name, value in means.items()}


def packing_metrics(counts: PackingCounts) -> dict[str, float]:
    """Share of attention's queries that is waste, and how often each computed token is used."""
    return {
        "batch/padding": 1.0 - counts.num_packed_tokens / counts.num_slots,
        "batch/sharing": counts.num_row_tokens / counts.num_packed_tokens,
    }


def metric_names(loss: Loss) -> tuple[str, ...]:
    """Names of what :class:`UpdateStep` measures with ``loss``, sorted."""
    return tuple(sorted({*loss.metric_names, *_COUNTS, _ENTROPY, _LOSS, *(_ENGINE if loss.needs_old else ())}))


def _combined(results: Sequence[Mapping[str, Tensor]], *, names: Sequence[str]) -> Tensor:
    """Float64 ``[M]``: sums and maxima over micro-batches; 0 and -inf where there is none."""
    neutral_M = torch.tensor([float("-inf") if _is_maximum(name) else 0.0 for name in names], dtype=torch.float64)
    rows = [neutral_M]
    for result in results:
        assert set(result) == set(names), f"the loss declares its metrics: {sorted(set(result) ^ set(names))}"
        rows.append(torch.stack([result[name].double() for name in names]).cpu())
    return _reduced(torch.stack(rows), names=names)


def _reduced(rows_RM: Tensor, *, names: Sequence[str]) -> Tensor:
    is_maximum_M = torch.tensor([_is_maximum(name) for name in names], device=rows_RM.device)
    sums_RM = rows_RM.masked_fill(is_maximum_M, 0.0)  # -inf of a maximum would make its column's unused sum NaN
    return torch.where(is_maximum_M, rows_RM.amax(dim=0), sums_RM.sum(dim=0))


def _is_maximum(name: str) -> bool:
    return name.endswith("_max")
