"""Handles of CPU tensors between processes of one host, in the form of CUDA's: a function and its arguments, of which the
seventh is the device. A stand-in for CUDA IPC where there is no GPU."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from nemo_axpo.engines.trtllm.pusher import Device, Handle

LOCAL_UUID = "CPU-of-this-host"


def rebuild(
    tensor_class: type, size: tuple, stride: tuple, offset: int, storage_class: type, dtype: torch.dtype, device: object,
    path: str,
) -> torch.Tensor:  # fmt: skip
    """The tensor behind a handle, in this process."""
    numel = max(1, torch.Size(size).numel())
    return torch.from_file(path, shared=True, size=numel, dtype=dtype)[: torch.Size(size).numel()].view(size)


def shared_file_device(directory: Path) -> Device:
    """Tensors live in files of ``directory``, which the caller removes."""
    numbers = itertools.count()
    paths: dict[int, str] = {}

    def place(tensor: torch.Tensor) -> torch.Tensor:
        path = str(directory / str(next(numbers)))
        placed = torch.from_file(path, shared=True, size=max(1, tensor.numel()), dtype=tensor.dtype)
        placed = placed[: tensor.numel()].view(tensor.shape)
        paths[placed.data_ptr()] = path
        return placed.copy_(tensor)

    def handle(tensor: torch.Tensor) -> Handle:
        arguments = (torch.Tensor, tuple(tensor.shape), tensor.stride(), 0, None, tensor.dtype, None)
        return rebuild, (*arguments, paths[tensor.data_ptr()])

    return Device(LOCAL_UUID, place, handle)
