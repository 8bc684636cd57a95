"""The embedded engine: an asyncio face over the scheduler, with weights pushed in by name."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.hf.decoder import Decoder
from nemo_axpo.engines.hf.kv_cache import KvCache
from nemo_axpo.engines.hf.prefix_index import MIN_SHARED_TOKENS
from nemo_axpo.engines.hf.requests import ActiveRequest, RequestReader
from nemo_axpo.engines.hf.rotary import RotaryTable
from nemo_axpo.engines.hf.scheduler import Scheduler
from nemo_axpo.engines.hf.statistics import EngineStatistics
from nemo_axpo.engines.hf.vision import VisionEncoder
from nemo_axpo.engines.hf.weights import DecoderWeights, WeightLoader
from nemo_axpo.engines.state import EngineState
from nemo_axpo.types import Completion, GenerationRequest


class HfEngine(EngineState):
    """Samples from a Qwen3-VL in this process; implements ``nemo_axpo.engines.base.Engine``.

    The vision tower is the Hugging Face module; the text decoder is our own forward over the same weights. A pump task
    steps the batch in the caller's event loop for as long as requests wait or run, and gives way between steps.

    Memory: ``(max_num_seqs + max_parked_seqs) · max_model_len`` cached positions. Not yet run on a GPU.
    """

    def __init__(
        self,
        hf_config: Qwen3VLConfig,
        *,
        image_store: object,
        stop_token_ids: Collection[int],
        banned_token_ids: Collection[int],
        max_num_seqs: int,
        max_model_len: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        max_parked_seqs: int | None = None,
        share_prefixes: bool = True,
    ) -> None:
        """``image_store``: anything with ``features(image_id)``. ``max_parked_seqs``: ended rows kept for reuse
        (default ``max_num_seqs``). ``share_prefixes=False`` computes every prompt anew (measurements and tests).
        """
        super().__init__()
        _check_limits(hf_config, max_num_seqs=max_num_seqs, max_model_len=max_model_len, banned=banned_token_ids)
        device = torch.device(device)
        tower = _build_tower(hf_config, device=device, dtype=dtype)
        weights = DecoderWeights.allocate(hf_config, device=device, dtype=dtype)
        num_parked = max_num_seqs if max_parked_seqs is None else max_parked_seqs
        num_rows = max_num_seqs + num_parked
        self._cache = _build_cache(
            hf_config, num_rows=num_rows, num_positions=max_model_len, device=device, dtype=dtype
        )
        self._loader = WeightLoader(hf_config, decoder=weights, tower=tower)
        self._reader = RequestReader(hf_config, image_store=image_store, max_model_len=max_model_len)
        self._vision = VisionEncoder(tower, max_images=2 * num_rows, device=device)
        self._scheduler = Scheduler(
            cache=self._cache,
            decoder=Decoder(
                hf_config,
                weights=weights,
                cache=self._cache,
                rotary=RotaryTable(hf_config, num_positions=max_model_len, device=device),
                banned_token_ids=tuple(banned_token_ids),
            ),
            vision=self._vision,
            max_running=max_num_seqs,
            min_shared_tokens=MIN_SHARED_TOKENS if share_prefixes else max_model_len + 1,
            stop_token_ids=stop_token_ids,
        )
        self._waiters: dict[ActiveRequest, asyncio.Future[Completion]] = {}
        self._pump_task: asyncio.Task[None] | None = None

    @property
    def statistics(self) -> EngineStatistics:
        """Counters since the engine was built."""
        scheduler = self._scheduler
        return EngineStatistics(
            num_generated_tokens=scheduler.num_generated_tokens,
            num_prefill_tokens=scheduler.num_prefill_tokens,
            num_reused_tokens=scheduler.num_reused_tokens,
            num_steps=scheduler.num_steps,
            num_encoded_images=self._vision.num_encoded,
        )

    async def generate(self, request: GenerationRequest) -> Completion:
        """Samples one completion (see the protocol). Cancelling the awaiting task frees the request's row at once."""
        self._check_ready()
        self._leave_stopped_loop()
        active = self._reader.read(request)
        waiter: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiters[active] = waiter
        self._scheduler.submit(active)
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.create_task(self._pump())
        try:
            return await waiter
        except asyncio.CancelledError:
            self._scheduler.cancel(active)
            raise
        finally:
            self._waiters.pop(active, None)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, policy_version: int) -> None:
        """Replaces the weights; drops cached prefixes and image features. Needs an idle engine.

        ValueError for a tensor that is unknown, misshapen or missing; the engine then serves nothing until a complete
        set is loaded.
        """
        self._forget_weights(num_in_flight=len(self._waiters))
        self._loader.load(named_tensors)
        with torch.inference_mode():
            self._cache.clear()
        self._scheduler.reset()
        self._vision.clear()
        self._policy_version = policy_version

    async def close(self) -> None:
        """Resolves what waits or runs with finish_reason ``aborted`` and frees the cache; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        for active, waiter in self._waiters.items():
            _resolve(waiter, active.completion(finish_reason="aborted", policy_version=self.policy_version))
        self._leave_stopped_loop()
        self._scheduler.reset()
        if self._pump_task is not None:
            await self._pump_task
        self._scheduler.release()
        self._vision.release()
        del self._cache, self._loader

    async def _pump(self) -> None:
        try:
            while self._scheduler.has_work:
                for active in self._scheduler.step():
                    reason = self._scheduler.finish_reason(active)
                    completion = active.completion(finish_reason=reason, policy_version=self._policy_version)
                    _resolve(self._waiters[active], completion)
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever broke a step reaches every waiter: none may hang
            self._fail(error)

    def _leave_stopped_loop(self) -> None:
        """Forgets the requests of an event loop that was stopped without cancelling its tasks."""
        if self._pump_task is None or self._pump_task.get_loop() is asyncio.get_running_loop():
            return
        self._pump_task = None
        if self._scheduler.has_work:
            self._waiters.clear()
            self._scheduler.reset()

    def _fail(self, error: Exception) -> None:
        self._scheduler.reset()
        for waiter in self._waiters.values():
            if not waiter.done():
                failure = EngineError(f"the hf engine failed while sampling: {type(error).__name__}: {error}")
                failure.__cause__ = error
                waiter.set_exception(failure)


def _resolve(waiter: asyncio.Future[Completion], completion: Completion) -> None:
    if not waiter.done():
        waiter.set_result(completion)


def _build_cache(
    config: Qwen3VLConfig, *, num_rows: int, num_positions: int, device: torch.device, dtype: torch.dtype
) -> KvCache:
    text = config.text_config
    return KvCache(
        num_rows,
        num_layers=text.num_hidden_layers,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        num_positions=num_positions,
        device=device,
        dtype=dtype,
    )


def _build_tower(config: Qwen3VLConfig, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """The Hugging Face vision tower with scaled-dot-product attention, in evaluation mode, its weights still random."""
    tower = Qwen3VLVisionModel._from_config(config.vision_config, attn_implementation="sdpa")
    return tower.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _check_limits(config: Qwen3VLConfig, *, max_num_seqs: int, max_model_len: int, banned: Collection[int]) -> None:
    vocab_size, longest = config.text_config.vocab_size, config.text_config.max_position_embeddings
    if max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}; it is the largest batch")
    if not 1 < max_model_len <= longest:
        raise ValueError(f"max_model_len must lie in [2, {longest}] (max_position_embeddings), got {max_model_len}")
    outside = [token for token in banned if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(f"banned_token_ids must lie in [0, {vocab_size}), got {outside[:5]}; pass ids of this model")
