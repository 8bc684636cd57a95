"""Process group, megatron's parallel state and random seeds: everything that must exist before a model is built.

Works under ``torchrun`` (ranks and address from its environment) and as one plain process, which needs neither a free
port nor a file: its store lives in memory.
"""

from __future__ import annotations

import datetime
import os
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from nemo_axpo.actors import cpu_shim

cpu_shim.install()

# isort: split
from megatron.core import parallel_state, tensor_parallel

from nemo_axpo.errors import rule_message

DEFAULT_TIMEOUT_S = 1800.0
"""Longest wait for another rank in one exchange."""


@dataclass(frozen=True)
class ParallelLayout:
    """How the ranks of the job share one model; the rest of the ranks are data-parallel replicas."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sequence_parallel: bool = False


def check_device(device: torch.device) -> None:
    """ValueError where megatron would not compute on ``device``: wherever it sees a GPU it puts its buffers there."""
    if device.type == "cpu" and torch.cuda.is_available():
        rule = "device=cpu needs a process that sees no GPU"
        cure = "set device=cuda, or hide them: CUDA_VISIBLE_DEVICES= nemo-axpo ..."
        raise ValueError(rule_message(rule, got=f"{torch.cuda.device_count()} visible", cure=cure))


def initialize(
    layout: ParallelLayout, *, device: torch.device, seed: int, timeout_s: float = DEFAULT_TIMEOUT_S
) -> None:
    """Creates the process group and megatron's groups for ``layout`` (once per process) and seeds every generator.

    ``timeout_s``: a rank that waits longer for another one ends the job. With tensor parallelism kernels are queued in one
    connection unless the environment says otherwise: megatron's layers count on it to compute while they exchange
    (``LinearWithGradAccumulationAndAsyncCommunication``).

    ValueError where the layout does not divide the ranks, or differs from the one this process already has.
    """
    cpu_shim.install()
    if layout.tensor_parallel > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if not dist.is_initialized():
        _init_process_group(device, timeout=datetime.timedelta(seconds=timeout_s))
    if parallel_state.model_parallel_is_initialized():
        _check_same_layout(layout)
    else:
        _init_model_parallel(layout, timeout_s=timeout_s)
    _seed_generators(seed)


def replica_ranks() -> list[list[int]]:
    """Global ranks of every data-parallel replica, its first tensor-parallel rank of the first stage in front.

    Every rank calls it, after :func:`initialize`.
    """
    place = [
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    ]
    if dist.get_world_size() == 1:
        return [[0]]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    places = torch.empty(dist.get_world_size(), len(place), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(places, torch.tensor([place], device=device))
    ranks = sorted(range(len(places)), key=lambda rank: places[rank].tolist())
    size = len(ranks) // parallel_state.get_data_parallel_world_size()
    return [ranks[start : start + size] for start in range(0, len(ranks), size)]


def shutdown() -> None:
    """Destroys megatron's groups and the process group, as the end of a job or of a test does."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _init_process_group(device: torch.device, *, timeout: datetime.timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(own_gpu() if device.index is None else device.index)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def own_gpu() -> int:
    """Number of this rank's GPU among those it sees: its number on its node. ValueError where there are too few."""
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        rule = "every rank of a node needs a GPU of its own, of those that all of them see"
        cure = "start as many ranks as there are GPUs (torchrun --nproc-per-node), or see CUDA_VISIBLE_DEVICES"
        raise ValueError(rule_message(rule, got=f"LOCAL_RANK={number} with {count} visible", cure=cure))
    return number


def _init_model_parallel(layout: ParallelLayout, *, timeout_s: float) -> None:
    num_ranks, per_model = dist.get_world_size(), layout.tensor_parallel * layout.pipeline_parallel
    if num_ranks % per_model:
        raise ValueError(
            f"tensor_parallel · pipeline_parallel must divide the number of ranks; got {layout.tensor_parallel} · "
            f"{layout.pipeline_parallel} with {num_ranks} ranks: start {per_model} ranks (torchrun --nproc-per-node) "
            "or a multiple"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        distributed_timeout_minutes=timeout_s / 60,
    )


def _check_same_layout(layout: ParallelLayout) -> None:
    present = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )
    if present != (layout.tensor_parallel, layout.pipeline_parallel):
        raise ValueError(
            f"one process holds one parallel layout; got tensor × pipeline = {layout.tensor_parallel} × "
            f"{layout.pipeline_parallel} after {present[0]} × {present[1]}: start a new process"
        )


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
