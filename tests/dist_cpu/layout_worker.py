"""Run by torchrun: scores and updates under each parallel layout, and saves beside each checkpoint what ranks see.

torchrun --nproc-per-node 2 layout_worker.py NAME=TP,PP,SP … -- CHECKPOINT …
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import torch.distributed as dist
from megatron.core import parallel_state
from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.types import TrainBatch


def shares(samples: list) -> list[list]:
    """What this replica trains in each update; one replica trains everything."""
    if parallel_state.get_data_parallel_world_size() == 1:
        return [samples] * 3
    first = parallel_state.get_data_parallel_rank() == 0
    splits = ({0, 2, 3}, set(), {1, 2, 3, 4, 5})  # balanced, one replica without samples, nearly everything on one
    return [[sample for n, sample in enumerate(samples) if (n in split) == first] for split in splits]


def train(checkpoint: str, layout: ParallelLayout) -> dict:
    """Log-probs before, metrics of three updates, and the weights after them."""
    settings = AdamSettings(1e-2, eps=1e-2)
    actor = Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=settings, layout=layout,
        micro_batch_tokens=60,
    )  # fmt: skip
    batches = [TrainBatch(tuple(share), num_planned_rollouts=6) for share in shares(mixed_samples())]
    logprobs = dict(zip((s.rollout_id for s in batches[0].samples), actor.logprobs(batches[0].samples), strict=True))
    metrics = [actor.update(batch, loss=PolicyLoss()) for batch in batches]
    metrics.append(actor.update(TrainBatch((), 6), loss=PolicyLoss()))
    weights = {name: tensor.detach().clone() for name, tensor in actor.hf_tensors()}
    return {"logprobs": logprobs, "metrics": metrics, "weights": weights, "steps": actor.policy_version}


def main() -> None:
    """Every layout named on the command line, one after another in the same ranks."""
    split = sys.argv.index("--")
    layouts, checkpoints = sys.argv[1:split], sys.argv[split + 1 :]
    torch.set_num_threads(1)
    for argument in layouts:
        name, _, values = argument.partition("=")
        tensor, pipeline, sequence = map(int, values.split(","))
        for checkpoint in checkpoints:
            result = train(checkpoint, ParallelLayout(tensor, pipeline, bool(sequence)))
            torch.save(result, Path(checkpoint) / f"{name}.{dist.get_rank()}.pt")
        parallel_state.destroy_model_parallel()  # the next layout builds its own groups


if __name__ == "__main__":
    main()
