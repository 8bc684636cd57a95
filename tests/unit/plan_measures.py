"""What a real actor holds and keeps, in bytes: the measure the plan is compared with."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from nemo_axpo.actors.actor import Actor


def held_bytes(actor: Actor) -> dict[str, int]:
    """Weights, reference, gradients (without the padding at the end of megatron's buckets), optimizer state of this rank."""
    optimizer = actor._optimizer
    state = [tensor for values in optimizer.optimizer.state.values() for tensor in values.values()]
    masters = [p.main_param for p in actor._model.parameters() if getattr(p, "main_param", None) is not None]
    return {
        "weights": num_bytes(actor._model.parameters()),
        "reference": num_bytes(actor._reference.parameters()),
        "gradients": sum(buffer.numel_unpadded * buffer.grad_data.element_size() for buffer in actor._ddp.buffers),
        "optimizer": num_bytes([*state, *masters]),
    }


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of all elements, storage that nobody sees left out."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_bytes(actor: Actor, inputs: object) -> int:
    """Bytes of the distinct storages that autograd keeps of a forward pass up to the logits, without the weights'."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in actor._model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensor itself, so that no address is used twice

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        actor._ddp(inputs).logits()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
