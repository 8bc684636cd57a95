"""Lets megatron-core 0.16 train on a machine without CUDA: what it asks of a GPU is answered by the CPU.

Megatron's modules see a copy of the ``torch`` module in which the CUDA names mean the CPU, so other code of the
process keeps the real one. Three methods, which no module copy can reach, are patched for the whole process; without
CUDA two of them could only raise. Nothing is touched where CUDA is present.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

_ENTRY_MODULES = (
    "megatron.core.distributed",
    "megatron.core.optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.pipeline_parallel",
    "megatron.core.tensor_parallel.random",
    "megatron.core.transformer.transformer_block",
)
_FACTORIES = ("tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn")
_CPU = torch.device("cpu")


def install() -> bool:
    """Installs the shim; False, and nothing done, where CUDA is available. May be called again after more imports."""
    if torch.cuda.is_available():
        return False
    # Each of megatron's modules says for itself that the CUDA extensions are missing; here they are not expected.
    warnings.filterwarnings("ignore", message=".*Apex (is|are) not installed")
    for name in _ENTRY_MODULES:
        importlib.import_module(name)
    install_into("megatron.core")
    _patch_tensor_methods()
    _patch_rng_tracker()
    return True


def install_into(package: str) -> None:
    """Shows the shim to the imported modules of ``package``; nothing is done where CUDA is available."""
    if torch.cuda.is_available():
        return
    proxy = _torch_on_cpu()
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith(f"{package}.") and getattr(module, "torch", None) is torch:
            module.torch = proxy


@functools.cache
def _torch_on_cpu() -> types.ModuleType:
    """``torch`` with CUDA names answered by the CPU."""
    proxy = types.ModuleType("torch")
    proxy.__dict__.update(torch.__dict__)
    # Schedules, optimizers and gradient clipping create small tensors with the literal device "cuda".
    for name in _FACTORIES:
        setattr(proxy, name, _on_cpu(getattr(torch, name)))
    proxy.cuda = _cuda_on_cpu()
    return proxy


def _cuda_on_cpu() -> types.ModuleType:
    cuda = types.ModuleType("torch.cuda")
    cuda.__dict__.update(torch.cuda.__dict__)
    # Weights, gradient buffers and communication buffers are created on current_device().
    cuda.current_device = lambda: _CPU
    # Collectives and pipeline communication wait for the device, which on a CPU is never behind.
    cuda.synchronize = lambda *args, **kwargs: None
    # The tracker of per-rank random states uses the generator of the device, here that of the CPU.
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)
    cuda.empty_cache = lambda: None
    return cuda


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor factory to which ``device="cuda"`` means the CPU."""

    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return create


def _patch_tensor_methods() -> None:
    """``.cuda()`` keeps the tensor; ``.type()`` says ``torch.cuda.…``, which megatron's optimizers insist on."""
    if getattr(torch.Tensor.type, "is_cpu_shim", False):
        return
    original_type = torch.Tensor.type

    @functools.wraps(original_type)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original_type(self, *args, **kwargs)
        is_name = isinstance(result, str) and result.count(".") == 1
        return result.replace("torch.", "torch.cuda.", 1) if is_name else result

    type_name.is_cpu_shim = True
    torch.Tensor.type = type_name
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self


def _patch_rng_tracker() -> None:
    """Replaces the functions that reach into CUDA generators, and the fork that would warn about the CPU's state."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    random.CudaRNGStatesTracker.fork = _fork


@contextlib.contextmanager
def _fork(self: Any, name: str = "model-parallel-rng") -> Iterator[None]:
    """``CudaRNGStatesTracker.fork`` for one generator: megatron's own takes any use of the CPU's for a mistake."""
    assert name in self.states_, f"random state {name} was never added"
    outer_state, outer_name = torch.get_rng_state(), self._current_state_name
    if outer_name != "default-rng":
        self.states_[outer_name] = outer_state
    torch.set_rng_state(self.states_[name])
    self._current_state_name = name
    try:
        yield
    finally:
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(outer_state)
        self._current_state_name = outer_name
