"""vLLM's engine in this process, as plain synchronous calls. It belongs to one thread: every call must come from it.

vLLM with its engine core in the same process has no API of its own for this; ``LLMEngine`` is the layer below ``vllm.LLM``
that takes a request at a time, steps and aborts. Written for vLLM 0.32.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import EngineArgs, SamplingParams
from vllm.outputs import RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from nemo_axpo.engines.base import EngineError


class VllmCore:
    """One ``LLMEngine``, its requests under our own keys."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """``arguments``: see ``engine_arguments``."""
        with _generators_kept():
            config = EngineArgs(**arguments).create_engine_config()
            self._engine: LLMEngine | None = LLMEngine(
                vllm_config=config, executor_class=Executor.get_class(config), log_stats=False, multiprocess_mode=False
            )
        self._internal_ids: dict[str, str] = {}

    @property
    def has_requests(self) -> bool:
        """Whether a step has work."""
        return bool(self._internal_ids)

    def add(self, key: str, prompt: Any, sampling: SamplingParams) -> None:
        """Queues a request. ``key``: unique among those under way. ValueError where vLLM refuses it."""
        self._internal_ids[key] = self._engine.add_request(key, prompt, sampling)

    def abort(self, keys: Iterable[str]) -> None:
        """Ends requests without a result; unknown keys are those that have ended already."""
        internal = [self._internal_ids.pop(key) for key in keys if key in self._internal_ids]
        if internal:
            self._engine.abort_request(internal, internal=True)

    def abort_all(self) -> None:
        """Ends every request without a result."""
        self.abort(list(self._internal_ids))

    def step(self) -> list[RequestOutput]:
        """One step of the batch; the requests that ended in it, their ``request_id`` the key."""
        ended = [output for output in self._engine.step() if output.finished]
        for output in ended:
            self._internal_ids.pop(output.request_id, None)
        return ended

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces the weights and drops every cache. EngineError where cached prefixes cannot be dropped.

        After an error the model is in pieces until another call succeeds.
        """
        self._engine.collective_rpc("policy_load", args=(named_tensors,))
        self._engine.reset_encoder_cache()
        if not self._engine.reset_prefix_cache():
            raise EngineError("vLLM did not drop its cached prefixes: a request still holds some")

    def close(self) -> None:
        """Frees vLLM's memory."""
        self.abort_all()
        self._engine.engine_core.shutdown()
        self._engine = None
        gc.collect()


@contextmanager
def _generators_kept() -> Iterator[None]:
    """vLLM seeds the process's random generators as it starts; they are the trainer's."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
