"""The actor's state as flat named tensors and JSON values, so that a checkpoint is safetensors and JSON, never pickle.

    policy.<parameter>       weights
    master.<parameter>       float32 master weights (bf16 training only)
    exp_avg.<parameter>      Adam's moments, float32
    exp_avg_sq.<parameter>
    reference.<parameter>    weights of the reference policy (optional)

Tensors are this rank's shards, under the parameter names of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_axpo.errors import CheckpointError
from nemo_axpo.models.qwen3_vl.hf_mapping import global_parameters

POLICY = "policy."
"""What the names of the policy's weights begin with."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


def named_state(model: Any, optimizer: Any, *, reference: Any | None) -> dict[str, Tensor]:
    """Every tensor of the state, by reference: save or copy it before the next step."""
    _create_moments(optimizer)
    return dict(_state_tensors(model, optimizer, reference=reference))


@torch.no_grad()
def load_named_state(model: Any, optimizer: Any, tensors: Mapping[str, Tensor], *, reference: Any | None) -> None:
    """Copies ``tensors`` into place; reference weights may be absent. CheckpointError names what does not fit."""
    _create_moments(optimizer)
    has_reference = any(name.startswith("reference.") for name in tensors)
    targets = dict(_state_tensors(model, optimizer, reference=reference if has_reference else None))
    _check_state(tensors, targets)
    for name, target in targets.items():
        target.copy_(tensors[name])


@torch.no_grad()
def load_policy(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copies the policy's weights of a state into ``model``; as strict as :func:`load_named_state`."""
    targets = {POLICY + name: parameter.data for name, parameter in global_parameters(model).items()}
    policy = {name: tensor for name, tensor in tensors.items() if name.startswith(POLICY)}
    _check_state(policy, targets)
    for name, target in targets.items():
        target.copy_(policy[name])


def optimizer_step(optimizer: Any) -> int:
    """Steps taken so far."""
    return int(optimizer.param_groups[0].get("step", 0))


def set_optimizer_step(optimizer: Any, step: int) -> None:
    """Sets the step count that Adam's bias correction uses."""
    for group in optimizer.param_groups:
        group["step"] = step


def _state_tensors(model: Any, optimizer: Any, *, reference: Any | None) -> Iterator[tuple[str, Tensor]]:
    moments = optimizer.optimizer.state
    for name, parameter in global_parameters(model).items():
        yield POLICY + name, parameter.data
        master = getattr(parameter, "main_param", None)
        if master is not None:
            yield "master." + name, master.data
        for moment in _MOMENTS:
            if parameter.requires_grad:
                yield f"{moment}.{name}", moments[parameter if master is None else master][moment]
    if reference is not None:
        for name, parameter in global_parameters(reference).items():
            yield "reference." + name, parameter.data


def _create_moments(optimizer: Any) -> None:
    """Zero moments where no step has been taken yet."""
    optimizer.init_state_fn(optimizer.optimizer, optimizer.config)


def _check_state(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or unknown:
        raise CheckpointError(
            f"a training checkpoint holds exactly the actor's tensors; {len(missing)} are missing (first "
            f"{missing[:1]}), {len(unknown)} unknown (first {unknown[:1]}): resume with the configuration that wrote it"
        )
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise CheckpointError(
                f"{name} must have shape {tuple(target.shape)}; got {tuple(tensors[name].shape)}: resume with the "
                "configuration that wrote it"
            )
