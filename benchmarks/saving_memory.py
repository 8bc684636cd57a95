"""Host memory that one save of a training checkpoint needs, in bytes a parameter, on two data-parallel ranks.

    OMP_NUM_THREADS=1 python benchmarks/saving_memory.py --output benchmarks/results/saving_memory.json

Measured is the largest sum of live CPU allocations in torch's memory profile of ``CheckpointStore.save`` and ``finish``, on
top of what the actor holds. On a GPU weights and optimizer state lie there and their copies here, so it is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from environment import argument_parser, write_result
from peak_memory import DTYPES, IMAGE, VIDEO, SquareImages, model_config, peak_of, random_tensors, rows

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.losses.supervised_loss import SupervisedLoss
from nemo_axpo.models.qwen3_vl.loading import save_hf_checkpoint
from nemo_axpo.types import TrainBatch

NUM_RANKS = 2


def peak_of_a_save(directory: Path, *, dtype: str, is_sharded: bool, is_async: bool) -> float:
    """Bytes a parameter at the peak of this rank's part of a save."""
    hf_config = model_config("small")
    model = directory / dtype
    if dist.get_rank() == 0 and not model.exists():
        save_hf_checkpoint(model, random_tensors(hf_config, dtype=DTYPES[dtype]), hf_config=hf_config)
    dist.barrier()
    actor = Actor(
        model, image_store=SquareImages(2, patch_values=1), banned_token_ids=(IMAGE, VIDEO),
        optimizer=AdamSettings(1e-6), dtype=DTYPES[dtype], keep_reference=False,
        memory=MemorySettings(distributed_optimizer=is_sharded),
    )  # fmt: skip
    samples = tuple(rows(1, num_tokens=32, image_side=0, num_trained=8))
    actor.update(TrainBatch(samples, num_planned_rollouts=NUM_RANKS), loss=SupervisedLoss())
    store = CheckpointStore(directory / "checkpoints", keep=1, is_async=is_async)

    def save() -> None:
        store.save(1, tensors=actor.sharded_state(), state={"actor": actor.state_values()})
        store.finish()

    save()  # groups and threads are there the second time
    return peak_of(save, device="cpu") / sum(tensor.numel() for _, tensor in actor.hf_tensors())


def measure(output: Path) -> None:
    """Every kind of save, on every rank; run by torchrun."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        for is_sharded in (False, True):
            for is_async in (False, True):
                own = peak_of_a_save(output.parent, dtype=dtype, is_sharded=is_sharded, is_async=is_async)
                all_R: list[Any] = [None] * NUM_RANKS
                dist.all_gather_object(all_R, round(own, 2))
                optimizer, kind = "distributed" if is_sharded else "whole", "asynchronous" if is_async else "synchronous"
                found[f"{dtype}, {optimizer} optimizer, {kind}"] = all_R
    if dist.get_rank() == 0:
        output.write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    """Starts the ranks and writes what they found."""
    parser = argument_parser(__doc__)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS)]
        subprocess.run([*command, __file__, "--measure", str(path)], check=True, env=os.environ)
        results = json.loads(path.read_text())
    print(json.dumps(results, indent=1))
    write_result(arguments.output, {"unit": "bytes a parameter, rank by rank", "results": results})


if __name__ == "__main__":
    main()
