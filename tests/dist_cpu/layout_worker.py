"""Run by torchrun: the fixed AXPO step under each layout; saves beside each checkpoint what every rank sees.

torchrun --nproc-per-node 2 layout_worker.py LAYOUT … -- CHECKPOINT …
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import torch.distributed as dist
from axpo_step import NUM_PLANNED, axpo_samples
from layouts import LAYOUTS, Layout
from megatron.core import parallel_state
from tiny_qwen3_vl import BANNED, RandomImages

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.models.qwen3_vl.hf_mapping import global_parameters
from nemo_axpo.types import TrainBatch, TrainingSample

# A large eps: where a gradient is zero but for rounding, Adam would otherwise step by its sign.
SETTINGS = AdamSettings(4e-2, eps=1e-2, weight_decay=0.1, clip_grad=0.5)


def run(checkpoint: str, layout: Layout) -> dict:
    """Log-probs before, two updates with old log-probs, one without samples; gradients of the first update."""
    actor = Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=SETTINGS, layout=layout.parallel,
        micro_batch_tokens=120, memory=layout.memory, packing=layout.packing,
    )  # fmt: skip
    blur_tower_copies(actor)
    first, second = share(axpo_samples(), number=0), share(axpo_samples(), number=1)
    scored = {"first": actor.logprobs(first), "second": actor.logprobs(second)}
    gradients: dict[str, torch.Tensor] = {}
    metrics = [update(actor, first, old=scored["first"], loss=PolicyLoss(kl_coef=0.1))]
    gradients |= whole_gradients(actor)
    metrics.append(update(actor, second, old=scored["second"], loss=PolicyLoss(kl_coef=0.1, aggregation="sequence_mean")))
    metrics.append(actor.update(TrainBatch((), NUM_PLANNED), loss=PolicyLoss()))
    return {
        "logprobs": {row.rollout_id: values for row, values in zip(first, scored["first"], strict=True)},
        "metrics": metrics,
        "gradients": gradients,
        "weights": {name: tensor.detach().clone() for name, tensor in actor.hf_tensors()},
        "version": actor.policy_version,
    }


def blur_tower_copies(actor: Actor) -> None:
    """Rounding that differs between tensor-parallel ranks, as a GPU's: all but the first get other gradients of the tower."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    if rank and parallel_state.is_pipeline_first_stage():
        for parameter in actor._model.visual.parameters():
            parameter.register_hook(lambda gradient: gradient * (1 + 0.01 * rank))


def share(samples: Sequence[TrainingSample], *, number: int) -> tuple[TrainingSample, ...]:
    """This replica's rows of update ``number``: of the first a random uneven share, of the second all or none."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    rng = random.Random(f"places {number}")
    weights = [3.0] + [1.0] * (size - 1) if number == 0 else [0.0] * (size - 1) + [1.0]
    return tuple(row for row in samples if rng.choices(range(size), weights)[0] == rank)


def update(actor: Actor, rows: Sequence[TrainingSample], *, old: Sequence[torch.Tensor], loss: PolicyLoss) -> dict:
    """One optimizer step whose old policy is far enough away that some ratios are clipped."""
    shifted = [values + noise(row) for row, values in zip(rows, old, strict=True)]
    return actor.update(TrainBatch(tuple(rows), NUM_PLANNED), loss=loss, old_logprobs=shifted)


def noise(row: TrainingSample) -> torch.Tensor:
    """``[T]`` in ±0.5, the same wherever the row is."""
    generator = torch.Generator().manual_seed(zlib.crc32(row.rollout_id.encode()))
    return torch.rand(len(row.token_ids), generator=generator) - 0.5


def whole_gradients(actor: Actor) -> dict[str, torch.Tensor]:
    """The step's clipped gradients under Hugging Face names, put together as weights are."""
    if actor._ddp.ddp_config.use_distributed_optimizer:
        _gather_shards(actor)
    parameters = global_parameters(actor._model).values()
    kept = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.main_grad
    gradients = {name: tensor.detach().clone() for name, tensor in actor.hf_tensors()}
    for parameter, data in zip(parameters, kept, strict=True):
        parameter.data = data
    return gradients


def _gather_shards(actor: Actor) -> None:
    """The distributed optimizer's ranks hold the sum over replicas of their own shard alone."""
    group = parallel_state.get_data_parallel_group()
    for buffer in actor._ddp.buffers:
        for bucket in buffer.buckets:
            shards = bucket.grad_data.view(group.size(), -1)
            dist.all_gather(list(shards), shards[group.rank()].clone(), group=group)


def main() -> None:
    """Every layout named on the command line, one after another in the same ranks."""
    split = sys.argv.index("--")
    torch.set_num_threads(1)
    for name in sys.argv[1:split]:
        for checkpoint in sys.argv[split + 1 :]:
            result = run(checkpoint, LAYOUTS[name])
            torch.save(result, Path(checkpoint) / f"{name}.{dist.get_rank()}.pt")
        parallel_state.destroy_model_parallel()  # the next layout builds its own groups


if __name__ == "__main__":
    main()
