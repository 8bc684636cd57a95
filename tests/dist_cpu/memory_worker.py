"""Run by torchrun: what every rank really holds after an update, and keeps of a forward pass, under each layout.

torchrun --nproc-per-node 2 memory_worker.py NAME=TP,PP,SP,DISTRIBUTED … -- CHECKPOINT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import torch.distributed as dist
from megatron.core import parallel_state
from plan_measures import held_bytes, saved_bytes
from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples, sample

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.types import TrainBatch


def measure(checkpoint: str, layout: ParallelLayout, *, distributed: bool) -> dict:
    """Bytes by kind on this rank, and the shape of the micro-batch whose activations were counted."""
    actor = Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=AdamSettings(1e-3), layout=layout,
        dtype=torch.bfloat16, memory=MemorySettings(distributed_optimizer=distributed),
    )  # fmt: skip
    actor.update(TrainBatch(tuple(mixed_samples()), num_planned_rollouts=6), loss=PolicyLoss())
    found = {"stage": parallel_state.get_pipeline_model_parallel_rank(), **held_bytes(actor)}
    if layout.pipeline_parallel == 1:
        row = sample("8x8/a", *(7 * number % 80 for number in range(46)), trained=20)
        (microbatch,) = actor._microbatches([row])
        inputs = microbatch.inputs
        found["shape"] = (inputs.token_ids_T.numel(), inputs.image_token_P.numel(), inputs.predictor_L.numel())
        found["activations"] = saved_bytes(actor, inputs)
    return found


def main() -> None:
    """Every layout named on the command line, one after another in the same ranks."""
    split = sys.argv.index("--")
    torch.set_num_threads(1)
    for argument in sys.argv[1:split]:
        name, _, values = argument.partition("=")
        tensor, pipeline, sequence, distributed = map(int, values.split(","))
        checkpoint = sys.argv[split + 1]
        layout = ParallelLayout(tensor, pipeline, bool(sequence))
        found = measure(checkpoint, layout, distributed=bool(distributed))
        torch.save(found, Path(checkpoint) / f"{name}.{dist.get_rank()}.pt")
        parallel_state.destroy_model_parallel()  # the next layout builds its own groups


if __name__ == "__main__":
    main()
