"""Any rank of any layout, without the other ranks and without memory: fake groups, weights on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from nemo_axpo.actors import cpu_shim, megatron_setup
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.model import Qwen3VLModel

# isort: split
from megatron.core import parallel_state, tensor_parallel


@contextlib.contextmanager
def fake_rank(rank: int, *, tensor_parallel_size: int, pipeline_parallel_size: int) -> Iterator[None]:
    """This process is ``rank`` of one replica; megatron's groups exist, their collectives do nothing."""
    megatron_setup.shutdown()
    world_size = tensor_parallel_size * pipeline_parallel_size
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        parallel_state.initialize_model_parallel(
            tensor_parallel_size, pipeline_parallel_size, create_gloo_process_groups=False
        )
        tensor_parallel.model_parallel_cuda_manual_seed(0)
        yield
    finally:
        megatron_setup.shutdown()


def meta_stage(hf_config: Any, **changes: Any) -> Qwen3VLModel:
    """The stage of the present (fake) rank with its real shapes and no weights."""
    config = transformer_config(
        hf_config,
        dtype=torch.bfloat16,
        tensor_parallel=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_parallel=parallel_state.get_pipeline_model_parallel_world_size(),
    )
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    with _weights_on_meta(), torch.device("meta"):
        return Qwen3VLModel(replace(config, **changes), hf_config, pre_process=first, post_process=last)


@contextlib.contextmanager
def _weights_on_meta() -> Iterator[None]:
    """Megatron creates weights on torch.cuda.current_device(), which the CPU shim answers."""
    cuda = cpu_shim._torch_on_cpu().cuda
    before = cuda.current_device
    cuda.current_device = lambda: torch.device("meta")
    try:
        yield
    finally:
        cuda.current_device = before
