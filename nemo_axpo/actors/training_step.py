"""One pass of megatron's schedule over micro-batches: scoring (forward only) or training (forward and backward)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_axpo.actors.microbatches import Microbatch
from nemo_axpo.models.vocab_parallel import OutputStates, VocabShard, output_logprobs

Finish = Callable[[int, OutputStates], tuple[Tensor, dict[str, Any]]]
"""(micro-batch number, the model's output) to its loss and what the caller wants to know of it."""


def run_schedule(
    model: Any, microbatches: Sequence[Microbatch], *, finish: Finish, forward_only: bool
) -> list[dict[str, Any]]:
    """Runs every micro-batch; the results of ``finish`` in order on the last pipeline stage, empty on the others.

    A replica without micro-batches computes nothing, but in training its ranks add their zero gradients to the others'.
    The losses are shares of the step's loss, so gradients are summed: over micro-batches here, over data-parallel ranks
    by megatron, without any further division.
    """

    def forward_step(iterator: Any, stage: Any) -> tuple[Tensor, Callable[..., Any]]:
        number, microbatch = next(iterator)
        # Pictures of a whole step would not fit: a micro-batch's inputs are on the device only while it runs.
        inputs = microbatch.inputs.to(microbatch.mask_BS.device)
        return stage(inputs), functools.partial(calculate, number)

    def calculate(number: int, output: OutputStates) -> tuple[Tensor, Tensor, dict[str, Any]]:
        loss, results = finish(number, output)
        return loss, torch.ones((), dtype=torch.int, device=loss.device), results

    if not microbatches:
        if not forward_only:
            sum_model_grads([model])
        return []
    with torch.set_grad_enabled(not forward_only):
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(enumerate(microbatches)),
            model=[model],
            num_microbatches=len(microbatches),
            seq_length=1,
            micro_batch_size=1,
            forward_only=forward_only,
        )


def share_with_stages(values: Tensor | None, *, size: int, device: torch.device) -> Tensor:
    """The last pipeline stage's float32 ``[size]`` on every stage of its replica; the other stages pass None."""
    if values is None:
        values = torch.empty(size, device=device)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(values, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return values


def sum_model_grads(model: list[Any], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's gradient reduction without its division by a token count: our losses are divided already.

    Tensor-parallel ranks each hold the whole vision tower and compute the same gradient of it, but for the order in which
    a GPU's kernels add: they take the first rank's, so that the copies never part.
    """
    finalize_model_grads(model, None, **kwargs)
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return
    group, first = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_tensor_model_parallel_src_rank()
    for stage in model:
        tower = getattr(stage.module, "visual", None)
        for parameter in tower.parameters() if tower is not None else ():
            if parameter.requires_grad:
                dist.broadcast(parameter.main_grad, src=first, group=group)


def microbatch_logprobs(
    microbatch: Microbatch, output: OutputStates, *, shard: VocabShard
) -> tuple[Tensor, Tensor]:
    """Log-probs of the trained tokens (differentiable) and entropies, both float32 ``[L]``."""
    return output_logprobs(
        output,
        targets_L=microbatch.target_L,
        inverse_temperature_L=microbatch.inverse_temperature_L,
        shard=shard,
    )
