"""The policy of a training checkpoint without the trainer: weights alone, some of them at a time, on one process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from nemo_axpo.actors import megatron_setup  # installs the CPU shim before megatron is imported below

# isort: split
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor

from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.actors.state import POLICY, stored_names
from nemo_axpo.checkpoints.store import Checkpoint
from nemo_axpo.models.qwen3_vl.hf_mapping import Placement, placements

_CPU = torch.device("cpu")


def saved_policy(checkpoint: Checkpoint, *, hf_config: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The policy under its Hugging Face names, whole tensors, one layer in memory at a time.

    Whichever layout wrote it, this process needs no other. ``dtype``: of the actor. CheckpointError for a checkpoint of
    another model.
    """
    megatron_setup.initialize(ParallelLayout(), device=_CPU, seed=0)
    for _, group in itertools.groupby(placements(hf_config), key=_layer):
        yield from _layer_tensors(list(group), checkpoint, dtype=dtype)


def _layer(placement: Placement) -> str:
    """``decoder.layers.3``, ``visual.blocks.7``, or the name of a parameter outside of layers."""
    return ".".join(placement.name.split(".")[:3])


def _layer_tensors(
    group: Sequence[Placement], checkpoint: Checkpoint, *, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    wanted = {
        name: ShardedTensor.from_rank_offsets(name, torch.empty(shape, dtype=dtype))
        for placement in group
        for name, shape in _stored_shapes(placement).items()
    }
    loaded = checkpoint.load_tensors(wanted, is_part=True)
    for placement in group:
        parts = [loaded[name] for name in _stored_shapes(placement)]
        whole = torch.stack(parts) if len(parts) > 1 else parts[0]
        yield from zip(placement.hf_shapes, placement.split(whole), strict=True)


def _stored_shapes(placement: Placement) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a parameter in a checkpoint: a gated projection ``[2, I, H]`` is stored as its two halves."""
    shape, names = placement.local_shape(size=1), stored_names(placement.name)
    return {POLICY + name: shape if len(names) == 1 else shape[1:] for name in names}
