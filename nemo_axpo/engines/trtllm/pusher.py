"""Weights to ``trtllm-serve`` on the same host: buckets of tensors that its workers open by handle, without a copy through
the network.

A handle is what ``torch.multiprocessing.reductions.reduce_tensor`` makes of a CUDA tensor; the worker on a device finds its
own under the device's uuid (``tensorrt_llm/llmapi/rlhf_utils.py``, commit 04762f3b). CUDA handles are not yet run on a GPU.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.protocol import ServerClient
from nemo_axpo.weight_sync.buckets import pack

Handle = tuple[Callable[..., Tensor], tuple[Any, ...]]


@dataclass(frozen=True)
class Device:
    """A device whose workers take weights: its uuid, and how a tensor gets there and becomes a handle."""

    uuid: str
    place: Callable[[Tensor], Tensor]
    """The tensor on this device, alive until the bucket is taken."""
    handle: Callable[[Tensor], Handle]


def cuda_devices() -> tuple[Device, ...]:
    """Every CUDA device that this process sees."""
    return tuple(_cuda_device(index) for index in range(torch.cuda.device_count()))


class HandlePusher:
    """Implements ``nemo_axpo.engines.fleet.protocol.WeightPusher`` by handles."""

    def __init__(self, devices: Sequence[Device], *, bucket_bytes: int) -> None:
        """``bucket_bytes``: of one bucket on each device; a larger tensor is a bucket of its own."""
        assert devices, "there is a device to push to"
        self._devices, self.bucket_bytes, self.num_buckets = devices, bucket_bytes, 0

    def push(
        self, named_tensors: Iterable[tuple[str, Tensor]], *, servers: Sequence[ServerClient], policy_version: int
    ) -> Mapping[str, Exception]:
        """Every bucket goes to all servers at once; its memory is free again when the last one has taken it."""
        failures: dict[str, Exception] = {}
        self.num_buckets = 0
        with ThreadPoolExecutor(max(1, len(servers))) as threads:

            def on_all(call: Callable[[ServerClient], None]) -> None:
                asked = {s.name: threads.submit(call, s) for s in servers if s.name not in failures}
                failures.update({name: error for name, answer in asked.items() if (error := _failure(answer))})

            on_all(lambda server: server.start_update({}))
            for bucket in pack(named_tensors, bucket_bytes=self.bucket_bytes):
                self.num_buckets += 1
                named = [(e.name, tensor) for e, tensor in zip(bucket.layout.entries, bucket.tensors, strict=True)]
                placed = {device: [(name, device.place(tensor)) for name, tensor in named] for device in self._devices}
                message = {device.uuid: _encode(tensors, device.handle) for device, tensors in placed.items()}
                on_all(lambda server, message=message: server.update(message))
            on_all(lambda server: server.finish_update(policy_version=policy_version))
        return failures

    def close(self) -> None:
        """Nothing is held between pushes."""


def _encode(tensors: Sequence[tuple[str, Tensor]], handle: Callable[[Tensor], Handle]) -> str:
    return base64.b64encode(pickle.dumps([(name, handle(tensor)) for name, tensor in tensors])).decode()


def _failure(answer: Any) -> EngineError | None:
    """What a server failed with; errors of our own come out as they are."""
    error = answer.exception()
    if error is not None and not isinstance(error, EngineError):
        raise error
    return error


def _cuda_device(index: int) -> Device:
    from torch.multiprocessing.reductions import reduce_tensor

    device = torch.device("cuda", index)

    def handle(tensor: Tensor) -> Handle:
        torch.cuda.synchronize(device)  # another process reads what is written by now
        return reduce_tensor(tensor)

    return Device(
        uuid=f"GPU-{torch.cuda.get_device_properties(index).uuid}",
        place=lambda tensor: tensor.detach().to(device, copy=True).contiguous(),
        handle=handle,
    )
