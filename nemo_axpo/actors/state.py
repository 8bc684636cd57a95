"""The state of an actor as sharded tensors whose names say nothing of the layout, so that any layout loads any other.

    policy.<parameter>       weights
    master.<parameter>       float32 master weights (bf16 training only)
    exp_avg.<parameter>      Adam's moments, float32
    exp_avg_sq.<parameter>

Parameters have the names and the shapes they have in the whole model; the gated projection of the MLP is two tensors,
``…linear_fc1.weight_w`` (gate) and ``…_v`` (up). Which part a rank holds is what megatron's modules say of themselves.
The reference policy is not among them: it is the weights of the directory the actor was built from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nemo_axpo.actors import cpu_shim

cpu_shim.install()  # before megatron is imported below

# isort: split
import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from nemo_axpo.models.qwen3_vl.quantization import high_precision
from nemo_axpo.models.qwen3_vl.te_specs import plain_name

POLICY = "policy."
"""What the names of the policy's weights begin with."""
_MASTER = "master"
_MOMENTS = ("exp_avg", "exp_avg_sq")
# Layers one by one, and the two halves of the gated projection under names of their own: plain grids of shards.
_NAMING = {"non_homogeneous_layers": True, "singleton_local_shards": True}

Sharded = ShardedTensor | ShardedTensorFactory


def sharded_state(model: Any, optimizer: Any, *, is_loading: bool) -> dict[str, Sharded]:
    """This rank's part of the state by name. Every rank calls it: a sharded optimizer gathers its state for saving.

    The tensors are the live ones (those of a sharded optimizer copies): write or copy them before the next step. Where
    ``is_loading``, they are what is loaded into, and :func:`load_sharded_state` finishes the work.
    """
    _create_moments(optimizer)
    parameters = _parameters(model)
    state = _policy_state(parameters)
    if isinstance(optimizer, DistributedOptimizer):
        state |= _gathered_state(parameters, optimizer, is_loading=is_loading)
    else:
        state |= dict(_optimizer_state(parameters, optimizer))
    return state


@torch.no_grad()
def load_sharded_state(model: Any, optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copies what was loaded for :func:`sharded_state` into place."""
    _create_moments(optimizer)
    parameters = _parameters(model)
    for name, parameter in parameters.items():
        parameter.data.data.copy_(tensors[POLICY + name])
    if isinstance(optimizer, DistributedOptimizer):
        optimizer.load_parameter_state_from_fully_reshardable(_by_buffer(parameters, optimizer, tensors))
    else:
        for name, parameter in _optimizer_state(parameters, optimizer):
            parameter.data.copy_(tensors[name])


def stored_names(name: str) -> tuple[str, ...]:
    """Names under which a parameter is stored: its own, or those of gate and up of a gated projection."""
    is_gated = name.startswith("decoder.layers.") and name.endswith(".mlp.linear_fc1.weight")
    return (f"{name}_w", f"{name}_v") if is_gated else (name,)


def optimizer_step(optimizer: Any) -> int:
    """Steps taken so far."""
    return int(max((holder["step"] for holder in _step_holders(optimizer)), default=0))


def set_optimizer_step(optimizer: Any, step: int) -> None:
    """Sets the step count that Adam's bias correction uses."""
    for group in optimizer.param_groups:
        group["step"] = step
    for holder in _step_holders(optimizer):
        holder["step"] = torch.full_like(holder["step"], step) if isinstance(holder["step"], Tensor) else step


def _step_holders(optimizer: Any) -> list[dict[str, Any]]:
    """Groups, or the states of single parameters where Adam runs on the host (torch's own counts there)."""
    return [holder for holder in (*optimizer.param_groups, *optimizer.optimizer.state.values()) if "step" in holder]


def _create_moments(optimizer: Any) -> None:
    """Zero moments where no step has been taken yet."""
    if optimizer.init_state_fn is not None:
        optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
    elif not optimizer.optimizer.state:
        _take_empty_step(optimizer.optimizer)


def _take_empty_step(adam: Any) -> None:
    """Has megatron's Adam on the host make its state; weights stay as they are. Not yet run on a GPU.

    Its ``dummy_step`` follows random gradients: here at rate 0, and what it has counted is forgotten.
    """
    rates = [group["lr"] for group in adam.param_groups]
    for group in adam.param_groups:
        group["lr"] = 0.0
    adam.dummy_step()
    for group, rate in zip(adam.param_groups, rates, strict=True):
        group["lr"] = rate
    for moments in adam.state.values():
        for name in (*_MOMENTS, "step"):
            moments[name].zero_()


def _parameters(model: Any) -> dict[str, Sharded]:
    """This rank's parameters by their names in the whole model, whichever layer spec; ``data`` is the parameter itself.

    Left out: what Transformer Engine keeps beside weights (histories of FP8 maxima), which is pickled bytes.
    """
    found = {}
    for sharded in model.sharded_state_dict(metadata=dict(_NAMING)).values():
        if not isinstance(sharded, ShardedObject):
            name = plain_name(sharded.key)
            found[name] = replace(sharded, key=name)
    return found


def _policy_state(parameters: Mapping[str, Sharded]) -> dict[str, Sharded]:
    state = {}
    for name, parameter in parameters.items():
        state[POLICY + name] = replace(parameter, key=POLICY + name, data=high_precision(parameter.data))
        if isinstance(parameter, ShardedTensor):
            state[POLICY + name].allow_shape_mismatch = False  # megatron would fill an embedding up with zeros
    return state


def _optimizer_state(parameters: Mapping[str, Sharded], optimizer: Any) -> Iterator[tuple[str, Sharded]]:
    """State of an optimizer that holds whole parameters."""
    for name, parameter in parameters.items():
        if not parameter.data.requires_grad:
            continue
        master = getattr(parameter.data, "main_param", None)
        moments = optimizer.optimizer.state[parameter.data if master is None else master]
        tensors = {moment: moments[moment] for moment in _MOMENTS} | ({} if master is None else {_MASTER: master})
        for kind, tensor in tensors.items():
            yield f"{kind}.{name}", _like(parameter, tensor, kind=kind)


def _gathered_state(parameters: Mapping[str, Sharded], optimizer: Any, *, is_loading: bool) -> dict[str, Sharded]:
    """State of megatron's distributed optimizer, its shards put together on the first data-parallel rank (for loading: on
    every rank, as each cuts out its own). Source: ``sharded_param_state_fully_reshardable``."""
    gathered = optimizer.sharded_param_state_fully_reshardable(
        dict(parameters), is_loading, {"distrib_optim_fully_reshardable_mem_efficient": True}
    )
    state = {}
    for name, tensors in zip(_buffer_names(parameters, optimizer), (gathered or {}).values()):
        kinds = {moment: moment for moment in _MOMENTS} | ({_MASTER: "param"} if _has_masters(optimizer) else {})
        for kind, theirs in kinds.items():
            state[f"{kind}.{name}"] = _like(parameters[name], tensors[theirs].data, kind=kind)
    return state


def _by_buffer(
    parameters: Mapping[str, Sharded], optimizer: Any, tensors: Mapping[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Loaded state in the order in which the distributed optimizer reads it."""
    source = _MASTER + "." if _has_masters(optimizer) else POLICY
    return {
        number: {"param": tensors[source + name]} | {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}
        for number, name in enumerate(_buffer_names(parameters, optimizer))
    }


def _buffer_names(parameters: Mapping[str, Sharded], optimizer: Any) -> list[str]:
    """Parameters in the order of the distributed optimizer's buffers."""
    names = {id(parameter.data): name for name, parameter in parameters.items()}
    return [names[id(parameter)] for buffer in optimizer.buffers for parameter in buffer.param_index_map]


def _has_masters(optimizer: Any) -> bool:
    """In float32 the master weights are the policy itself."""
    return optimizer.config.params_dtype is not torch.float32


def _like(parameter: Sharded, tensor: Tensor, *, kind: str) -> Sharded:
    """``tensor`` sharded as the parameter it belongs to."""
    sharded = make_sharded_optimizer_tensor(parameter, tensor, kind)
    if isinstance(sharded, ShardedTensor):
        sharded.allow_shape_mismatch = False
    return sharded
