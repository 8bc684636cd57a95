"""Run by torchrun: scores and updates under each parallel layout, and saves beside each checkpoint what rank 0 sees.

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


def train(checkpoint: str, layout: ParallelLayout) -> dict:
    """Log-probs before, metrics of three updates, and the weights after them."""
    settings = AdamSettings(1e-2, eps=1e-2)
    actor = Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=settings, layout=layout,
        micro_batch_tokens=60,
    )  # fmt: skip
    batch = TrainBatch(tuple(mixed_samples()), num_planned_rollouts=6)
    logprobs = torch.cat(actor.logprobs(batch.samples))
    metrics = [actor.update(batch, loss=PolicyLoss()) for _ in range(3)]
    weights = {name: tensor.detach().clone() for name, tensor in actor.hf_tensors()}
    return {"logprobs": logprobs, "metrics": metrics, "weights": weights}


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
            if dist.get_rank() == 0:
                torch.save(result, Path(checkpoint) / f"{name}.pt")
        parallel_state.destroy_model_parallel()  # the next layout builds its own groups


if __name__ == "__main__":
    main()
