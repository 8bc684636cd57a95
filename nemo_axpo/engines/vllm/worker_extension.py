"""What vLLM's workers learn from us: to take the policy's weights, whole or in buckets, in this process or in a server.

vLLM mixes the class below into its worker class (``worker_extension_cls``); its methods are then called on every worker
by name (``collective_rpc``). From the start of an update to its end the model is in pieces: nothing may be sampled.

Two facts about vLLM 0.32 shape this file. Its layerwise reload keeps what it was given of a layer until the layer is
complete, so a bucket's tensors are copied out of the memory they came in, and what an update that broke off has left
behind must be thrown away before the next one. And on a CPU a tied output projection computes with a packed copy of the
embedding that no kind of reload renews.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from nemo_axpo.weight_sync.receiver import WeightReceiver


class PolicyWeights:
    """Mixed into a worker; every name begins with ``policy_`` to meet none of vLLM's."""

    policy_receiver: WeightReceiver | None = None

    def policy_load(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces all weights by ``named_tensors`` (HF names, full tensors), in this process."""
        with self._policy_model() as model:
            _open(model)
            model.load_weights(iter(named_tensors))
            _close(model, self.model_config)

    def policy_start(self, channel: Mapping[str, Any]) -> None:
        """Opens an update that comes in buckets; ``channel`` is the transport's."""
        if self.policy_receiver is None:
            self.policy_receiver = WeightReceiver(worker=self.rank, device=self.device)
        self.policy_receiver.start(channel)
        with self._policy_model() as model:
            _open(model)

    def policy_receive(self, message: Mapping[str, Any]) -> None:
        """Takes one bucket."""
        with self._policy_model() as model:
            model.load_weights(self._policy_open_receiver().receive(message))

    def policy_finish(self, policy_version: int) -> None:
        """Ends the update; the engine's caches are the caller's business."""
        self._policy_open_receiver().finish(policy_version=policy_version)
        with self._policy_model() as model:
            _close(model, self.model_config)

    def _policy_open_receiver(self) -> WeightReceiver:
        if self.policy_receiver is None:
            raise RuntimeError("no weight update is open on this worker; call policy_start first")
        return self.policy_receiver

    @contextmanager
    def _policy_model(self) -> Iterator[torch.nn.Module]:
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            yield self.model_runner.get_model()


def _open(model: torch.nn.Module) -> None:
    """Takes the model apart, and forgets what an update that broke off has brought."""
    initialize_layerwise_reload(model)
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0


def _close(model: torch.nn.Module, model_config: Any) -> None:
    """Puts the model together."""
    finalize_layerwise_reload(model, model_config)
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead) and hasattr(layer, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
