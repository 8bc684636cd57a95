"""The policy of a training checkpoint without the trainer: weights alone, no gradients and no optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemo_axpo.actors import megatron_setup  # installs the CPU shim before megatron is imported below

# isort: split
import torch
from torch import Tensor

from nemo_axpo.actors import state
from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.models.qwen3_vl import hf_mapping
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.model import build_stage

_CPU = torch.device("cpu")


def saved_policy(
    tensors: Mapping[str, Tensor], *, hf_config: Any, layout: ParallelLayout, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The policy of an actor's state under its Hugging Face names, whole tensors, one at a time.

    ``tensors``: of :meth:`Actor.state_dict <nemo_axpo.actors.actor.Actor.state_dict>`; only the policy is read.
    ``layout`` and ``dtype``: of the actor. CheckpointError for a state of another model, before the first tensor.
    """
    megatron_setup.initialize(layout, device=_CPU, seed=0)
    model = build_stage(hf_config, config=transformer_config(hf_config, dtype=dtype, **vars(layout)), device=_CPU)
    state.load_policy(model, tensors)
    return hf_mapping.hf_tensors(model, hf_config=hf_config)
