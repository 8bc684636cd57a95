"""vLLM as an engine in this process.

    event loop                        vLLM's own thread
    generate → wait                   one turn: end cancelled requests, add new ones, one step
    pump: turn after turn  ──────────▶
                           ◀──────────  what ended
    load_weights, close    ──────────▶  between two turns

vLLM takes this process's default process group and ``torch.set_num_threads`` to itself, which is why trainers of several
ranks use servers.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from transformers import Qwen3VLConfig

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.request_checks import RequestChecks
from nemo_axpo.engines.state import EngineState
from nemo_axpo.engines.vllm.settings import VllmSettings, engine_arguments, set_environment
from nemo_axpo.engines.vllm.statistics import VllmStatistics
from nemo_axpo.engines.weight_checks import WeightChecks
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.types import Completion, GenerationRequest

Result = TypeVar("Result")
_DEFAULTS = VllmSettings()


@dataclass(eq=False)
class _Waiting:
    """A request on its way."""

    request: GenerationRequest
    prompt: Any
    sampling: Any
    future: asyncio.Future[Completion]


@dataclass(frozen=True)
class _Turn:
    """What one turn of vLLM's thread brought, by key."""

    ended: dict[str, Any]
    """vLLM's outputs."""
    refused: dict[str, Exception]
    """Requests that vLLM does not take."""
    has_requests: bool


class VllmEngine(EngineState):
    """Implements ``nemo_axpo.engines.base.Engine``. Run on a CPU; not yet run on a GPU."""

    def __init__(
        self,
        hf_config: Qwen3VLConfig,
        *,
        checkpoint: str | Path,
        image_store: object,
        stop_token_ids: Collection[int],
        banned_token_ids: Collection[int],
        max_num_seqs: int,
        max_model_len: int,
        device: str = "cpu",
        dtype: str = "float32",
        settings: VllmSettings = _DEFAULTS,
    ) -> None:
        """``checkpoint``: directory with the model's configuration, tokenizer and image processor; weights are not read.

        ConfigError in a job of several ranks.
        """
        super().__init__()
        _check_ranks()
        set_environment(device)
        from nemo_axpo.engines.vllm.core import VllmCore  # vLLM reads the environment as it is imported
        from nemo_axpo.engines.vllm.requests import RequestTranslator

        self._checks = RequestChecks(hf_config, image_store=image_store, max_model_len=max_model_len)
        self._weight_checks = WeightChecks(hf_config)
        self._translator = RequestTranslator(
            image_token_id=hf_config.image_token_id,
            stop_token_ids=stop_token_ids,
            banned_token_ids=banned_token_ids,
        )
        arguments = engine_arguments(
            settings,
            checkpoint=checkpoint,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            dtype=dtype,
            device=device,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        self._core = self._on_thread(VllmCore, arguments)
        self._keys = itertools.count()
        self._waiting: dict[str, _Waiting] = {}
        self._new: list[str] = []
        self._cancelled: list[str] = []
        self._pump_task: asyncio.Task[None] | None = None
        self._num_generated = self._num_prompt = self._num_reused = 0

    @property
    def statistics(self) -> VllmStatistics:
        """Counters since the engine was built, of requests that ended."""
        return VllmStatistics(self._num_generated, self._num_prompt - self._num_reused, self._num_reused)

    async def generate(self, request: GenerationRequest) -> Completion:
        """Samples one completion (see the protocol). Cancelling the awaiting task ends the request at the next step."""
        self._check_ready()
        self._leave_stopped_loop()
        images = self._checks.check(request)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        key = str(next(self._keys))
        self._waiting[key] = _Waiting(
            request, self._translator.prompt(request, images), self._translator.sampling(request), future
        )
        self._new.append(key)
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.create_task(self._pump())
        try:
            return await future
        except asyncio.CancelledError:
            self._cancelled.append(key)
            raise
        finally:
            self._waiting.pop(key, None)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], *, policy_version: int) -> None:
        """Replaces the weights; drops cached prefixes and image features. Needs an idle engine.

        ValueError for a tensor that is unknown, misshapen or missing; the engine then serves nothing until a complete
        set is loaded.
        """
        self._forget_weights(num_in_flight=len(self._waiting))
        self._on_thread(self._core.abort_all)  # cancelled ones that no turn has ended yet
        self._on_thread(self._core.load_weights, self._weight_checks.checked(named_tensors))
        self._policy_version = policy_version

    async def close(self) -> None:
        """Resolves what waits or runs with finish_reason ``aborted`` and frees vLLM's memory; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        for waiting in self._waiting.values():
            _resolve(waiting.future, Completion((), (), "aborted", self.policy_version))
        await asyncio.get_running_loop().run_in_executor(self._thread, self._core.close)
        self._thread.shutdown()

    async def _pump(self) -> None:
        """Turn after turn, for as long as there are requests."""
        loop, has_requests = asyncio.get_running_loop(), True
        while (has_requests or self._new or self._cancelled) and not self._is_closed:
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
            added = {key: self._waiting[key] for key in new if key in self._waiting}
            try:
                turn = await loop.run_in_executor(self._thread, self._turn, added, cancelled)
            except Exception as error:  # noqa: BLE001 - whatever broke a step reaches every waiter: none may hang
                self._fail(error)
                await loop.run_in_executor(self._thread, self._core.abort_all)
                return
            self._hand_out(turn)
            has_requests = turn.has_requests

    def _turn(self, added: dict[str, _Waiting], cancelled: list[str]) -> _Turn:
        """On vLLM's thread."""
        self._core.abort(cancelled)
        refused: dict[str, Exception] = {}
        for key, waiting in added.items():
            try:
                self._core.add(key, waiting.prompt, waiting.sampling)
            except ValueError as error:
                refused[key] = error
        outputs = self._core.step() if self._core.has_requests else []
        return _Turn({output.request_id: output for output in outputs}, refused, self._core.has_requests)

    def _hand_out(self, turn: _Turn) -> None:
        for key, error in turn.refused.items():
            if key in self._waiting:
                _resolve(self._waiting[key].future, error)
        for key, output in turn.ended.items():
            waiting = self._waiting.get(key)
            if waiting is None:  # cancelled while it ended
                continue
            self._count(output)
            try:
                result = self._translator.completion(output, waiting.request, policy_version=self.policy_version)
            except EngineError as error:
                result = error
            _resolve(waiting.future, result)

    def _count(self, output: Any) -> None:
        self._num_generated += len(output.outputs[0].token_ids)
        self._num_prompt += len(output.prompt_token_ids)
        self._num_reused += output.num_cached_tokens or 0

    def _fail(self, error: Exception) -> None:
        for waiting in self._waiting.values():
            failure = EngineError(f"vLLM failed while sampling: {type(error).__name__}: {error}")
            failure.__cause__ = error
            _resolve(waiting.future, failure)

    def _leave_stopped_loop(self) -> None:
        """Forgets the requests of an event loop that was stopped without cancelling its tasks."""
        if self._pump_task is None or self._pump_task.get_loop() is asyncio.get_running_loop():
            return
        self._pump_task = None
        self._waiting.clear()
        self._new.clear()
        self._on_thread(self._core.abort_all)

    def _on_thread(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Runs ``call`` on vLLM's thread, after the turn that is under way."""
        return self._thread.submit(call, *arguments).result()


def _resolve(future: asyncio.Future[Completion], result: Completion | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _check_ranks() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        rule = "engine.name=vllm samples in the process of a trainer of one rank"
        cure = "start vLLM servers and set engine.name=vllm_server"
        raise ConfigError(rule_message(rule, got=f"{dist.get_world_size()} ranks", cure=cure))
