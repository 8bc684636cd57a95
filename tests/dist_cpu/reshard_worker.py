"""Run by torchrun: training continued under each layout from checkpoints that every other one wrote.

torchrun --nproc-per-node 2 reshard_worker.py CHECKPOINT STORES NAME=TP,PP,SP,DISTRIBUTED,BF16 … → STORES/results.pt
"""

from __future__ import annotations

import resource
import shutil
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import torch.distributed as dist
from megatron.core import parallel_state
from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.actors.random_states import random_states, set_random_states
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.errors import CheckpointError
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.types import TrainBatch

NUM_BEFORE, NUM_AFTER = 2, 2


def build(checkpoint: str | Path, values: str) -> Actor:
    """An actor of a layout given as ``TP,PP,SP,DISTRIBUTED,BF16``."""
    tensor, pipeline, sequence, distributed, bfloat16 = map(int, values.split(","))
    return Actor(
        checkpoint, image_store=RandomImages(), banned_token_ids=BANNED,
        optimizer=AdamSettings(1e-2, eps=1e-2), layout=ParallelLayout(tensor, pipeline, bool(sequence)),
        micro_batch_tokens=60, memory=MemorySettings(distributed_optimizer=bool(distributed)),
        dtype=torch.bfloat16 if bfloat16 else torch.float32,
    )  # fmt: skip


def train(actor: Actor, *, first: int, count: int) -> dict:
    """Metrics of updates ``first`` to ``first + count`` and the weights after them."""
    batches = [TrainBatch(tuple(share), num_planned_rollouts=6) for share in shares(mixed_samples())]
    loss = PolicyLoss(kl_coef=0.1)  # the reference policy takes part
    metrics = [actor.update(batches[n % len(batches)], loss=loss) for n in range(first, first + count)]
    return {"metrics": metrics, "weights": {name: tensor.detach().clone() for name, tensor in actor.hf_tensors()}}


def shares(samples: list) -> list[list]:
    """What this replica trains in each update; one replica trains everything."""
    if parallel_state.get_data_parallel_world_size() == 1:
        return [samples] * 3
    first = parallel_state.get_data_parallel_rank() == 0
    splits = ({0, 2, 3}, set(), {1, 2, 3, 4, 5})  # balanced, one replica without samples, nearly everything on one
    return [[sample for n, sample in enumerate(samples) if (n in split) == first] for split in splits]


def train_and_save(checkpoint: str | Path, values: str, *, store: Path, is_async: bool = False) -> dict:
    """Updates, a checkpoint, and what an uninterrupted run has after more updates."""
    actor, checkpoints = build(checkpoint, values), CheckpointStore(store, is_async=is_async)
    train(actor, first=0, count=NUM_BEFORE)
    state = {"actor": actor.state_values()}
    checkpoints.save(1, tensors=actor.sharded_state(), state=state, random_states=random_states())
    result = train(actor, first=NUM_BEFORE, count=NUM_AFTER)
    checkpoints.finish()
    return result


def load_and_train(checkpoint: str | Path, values: str, *, store: Path, again: Path) -> dict:
    """What a run resumed under another layout has after more updates; at first it saves what it loaded ``again``."""
    actor, saved = build(checkpoint, values), CheckpointStore(store).read()
    actor.load_state(saved.load_tensors(actor.sharded_state(is_loading=True)), saved.state["actor"])
    if states := saved.random_states():
        set_random_states(states)
    assert actor.policy_version == NUM_BEFORE
    CheckpointStore(again).save(1, tensors=actor.sharded_state(), state=saved.state)
    return train(actor, first=NUM_BEFORE, count=NUM_AFTER)


def failures(checkpoint: str, values: str, *, store: Path) -> list[str]:
    """What every rank is told where the disk of the last one is full, and where a file of a checkpoint is cut off."""
    actor, told = build(checkpoint, values), []
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for is_async in (False, True):
        checkpoints = CheckpointStore(store, keep=1, is_async=is_async)
        if dist.get_rank() == dist.get_world_size() - 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        told.append(error_of(lambda checkpoints=checkpoints: save_and_finish(actor, checkpoints)))
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert checkpoints.read().step == 1 and not list(store.glob(".*"))
        dist.barrier()  # rank 0 makes room for the next one only when both have looked
    if dist.get_rank() == 0:
        file = max(checkpoints.path_of(1).glob("*.distcp"))
        file.write_bytes(file.read_bytes()[:-1])
    dist.barrier()
    told.append(error_of(checkpoints.read))
    return told


def rescued(checkpoint: str, values: str, *, store: Path) -> dict[str, int | None]:
    """The step that this rank saves from an error, by the rank that it ends: all of them, or one alone."""
    actor, rank, found = build(checkpoint, values), dist.get_rank(), {}
    for number, name in enumerate(("all", "0", "1")):
        checkpoints = CheckpointStore(store / name, is_async=True)
        checkpoints.save(1, tensors=actor.sharded_state(), state={})
        if name in ("all", str(rank)):
            found[name] = checkpoints.rescue(timeout_s=60.0 if name == "all" else 1.0)
        dist.barrier()
        assert len(CheckpointStore(store / name).steps()) == (number == 0)
    return found


def save_and_finish(actor: Actor, checkpoints: CheckpointStore) -> None:
    """A save that is over when it returns."""
    checkpoints.save(2, tensors=actor.sharded_state(), state={})
    checkpoints.finish()


def error_of(action) -> str:
    """The message of the CheckpointError that ``action`` raises."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return "no error"


def main() -> None:
    """Every layout saves, and then every layout loads what any has saved."""
    checkpoint, stores, *layouts = sys.argv[1:]
    stores, named = Path(stores), dict(argument.split("=") for argument in layouts)
    torch.set_num_threads(1)
    saved, resumed = {}, {}
    for name, values in named.items():
        saved[name] = train_and_save(checkpoint, values, store=stores / name, is_async=name.endswith("async"))
        parallel_state.destroy_model_parallel()  # the next layout builds its own groups
    for name, values in named.items():
        for store in sorted(path for path in stores.iterdir() if path.is_dir()):
            again = stores.with_name("again") / f"{store.name} {name}"
            resumed[store.name, name] = load_and_train(checkpoint, values, store=store, again=again)
        parallel_state.destroy_model_parallel()
    last, broken = next(reversed(named)), stores.with_name("broken")
    if dist.get_rank() == 0:
        shutil.copytree(stores / last, broken)
    dist.barrier()
    told: list = [None] * dist.get_world_size()
    dist.all_gather_object(told, failures(checkpoint, named[last], store=broken))
    saved_by: list = [None] * dist.get_world_size()
    dist.all_gather_object(saved_by, rescued(checkpoint, named[last], store=stores.with_name("rescued")))
    if dist.get_rank() == 0:
        torch.save({"saved": saved, "resumed": resumed, "told": told, "rescued": saved_by}, stores / "results.pt")


if __name__ == "__main__":
    main()
