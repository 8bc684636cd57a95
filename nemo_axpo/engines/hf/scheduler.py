"""One step of the embedded engine: admit what waits, feed one token to every running row, end what is done."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_axpo.engines.hf.admission import Admitter
from nemo_axpo.engines.hf.decoder import Decoder
from nemo_axpo.engines.hf.kv_cache import KvCache
from nemo_axpo.engines.hf.prefix_index import PrefixIndex, chain_hashes
from nemo_axpo.engines.hf.requests import ActiveRequest
from nemo_axpo.engines.hf.rows import RowTable
from nemo_axpo.engines.hf.sampling import SamplingControls, sample
from nemo_axpo.engines.hf.vision import VisionEncoder

MIN_ADMITTED_SHARE, MAX_DEFERRALS = 1 / 8, 3
"""Fewer waiting requests than this share of the running ones go on waiting, for at most so many steps."""


@dataclass
class RunningBatch:
    """On-device state of the R running rows, in row order; rebuilt when a row joins or leaves."""

    tokens_R: Tensor
    """Newest token of each row, not yet fed."""
    lengths_R: Tensor
    """Tokens cached, hence the place of the newest."""
    rope_shift_R: Tensor
    """Rotary position minus place."""
    max_length: int
    controls: SamplingControls
    seen_RV: Tensor | None
    """bool, tokens sampled so far; None where no request penalises them."""

    def advance(self, tokens_R: Tensor) -> None:
        """Takes the sampled tokens as the newest ones."""
        self.tokens_R = tokens_R
        if self.seen_RV is not None:
            self.seen_RV.scatter_(1, tokens_R.unsqueeze(1), True)
        self.lengths_R += 1
        self.max_length += 1


class Scheduler:
    """Continuous batching over a row table. Knows nothing of asyncio: ``step`` returns the requests that finished."""

    def __init__(
        self,
        *,
        cache: KvCache,
        decoder: Decoder,
        vision: VisionEncoder,
        max_running: int,
        min_shared_tokens: int,
        stop_token_ids: Collection[int],
    ) -> None:
        self._table = RowTable(cache)
        self._index = PrefixIndex(min_shared_tokens=min_shared_tokens)
        self._admitter = Admitter(cache=cache, table=self._table, index=self._index, decoder=decoder, vision=vision)
        self._decoder = decoder
        self._max_running = max_running
        self._stop_token_ids = frozenset(stop_token_ids)
        self._device = cache.device
        self._waiting: deque[ActiveRequest] = deque()
        self._running: list[ActiveRequest] = []
        self._batch: RunningBatch | None = None
        self._num_deferrals = 0
        self.num_generated_tokens = self.num_prefill_tokens = self.num_reused_tokens = self.num_steps = 0

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def requests(self) -> list[ActiveRequest]:
        """Everything running or waiting."""
        return [*self._running, *self._waiting]

    def submit(self, request: ActiveRequest) -> None:
        """Queues a request; the next step admits it where a row is free."""
        self._waiting.append(request)

    def cancel(self, request: ActiveRequest) -> None:
        """Drops a request wherever it is; its row is free (and its prefix reusable) at once."""
        if request.row is not None:
            self._end([request])
        elif request in self._waiting:
            self._waiting.remove(request)

    @torch.inference_mode()
    def step(self) -> list[ActiveRequest]:
        """Samples one token for every running request and returns those that are done, in row order."""
        if self._should_admit():
            self._admit()
        if self._batch is None:
            self._batch = self._gather()
        tokens, logprobs = self._decode(self._batch)
        self.num_steps += 1
        self.num_generated_tokens += len(tokens)
        finished = []
        for request, token, logprob in zip(self._running, tokens, logprobs, strict=True):
            request.tokens.append(token)
            request.logprobs.append(logprob)
            if token in self._stop_token_ids or len(request.logprobs) == request.sampling.max_new_tokens:
                finished.append(request)
        if finished:
            self._end(finished)
        return finished

    def finish_reason(self, request: ActiveRequest) -> str:
        """``stop`` or ``length`` of a finished request."""
        return "stop" if request.tokens[-1] in self._stop_token_ids else "length"

    def reset(self) -> None:
        """Drops every request and everything cached."""
        for request in self.requests:
            request.row = None
        self._waiting.clear()
        self._running, self._batch = [], None
        self._table.num_running = 0
        self._index.clear()
        self._table.clear()

    def release(self) -> None:
        """Lets go of the cache and the weights, after ``reset``; only the counters stay."""
        del self._admitter, self._decoder, self._table, self._index

    def _should_admit(self) -> bool:
        """Whether enough requests wait to share the fixed cost of an admission (one prefill, one vision pass)."""
        if not self._waiting or len(self._running) == self._max_running:
            return False
        if len(self._waiting) < MIN_ADMITTED_SHARE * len(self._running) and self._num_deferrals < MAX_DEFERRALS:
            self._num_deferrals += 1
            return False
        self._num_deferrals = 0
        return True

    def _admit(self) -> None:
        admitted = self._admitter.admit(self._waiting, max_admitted=self._max_running - len(self._running))
        self._running += [admission.request for admission in admitted]
        self._batch = None
        for admission in admitted:
            self.num_reused_tokens += admission.num_shared
            self.num_prefill_tokens += admission.num_new + 1

    def _decode(self, batch: RunningBatch) -> tuple[list[int], list[float]]:
        noise = [request.uniforms[len(request.logprobs)] for request in self._running]
        uniforms_R1 = torch.tensor(noise, device=self._device).unsqueeze(1)
        logits_RV = self._decoder.decode(
            batch.tokens_R,
            lengths_R=batch.lengths_R,
            positions_R=batch.lengths_R + batch.rope_shift_R,
            max_length=batch.max_length,
        )
        tokens_R, logprobs_R = sample(
            logits_RV, controls=batch.controls, uniforms_R1=uniforms_R1, seen_RV=batch.seen_RV
        )
        batch.advance(tokens_R)
        tokens, logprobs = tokens_R.tolist(), logprobs_R.tolist()
        if math.isnan(sum(logprobs)):
            raise FloatingPointError("logits are not a number: the weights have diverged; load finite weights")
        return tokens, logprobs

    def _end(self, requests: Sequence[ActiveRequest]) -> None:
        """Parks the rows of running requests, announces what they hold, and packs the rows that go on."""
        for request in requests:
            row, num_cached = request.row, request.num_cached
            keys = request.keys + request.tokens[request.num_prompt :]
            hashes = request.hashes + chain_hashes(request.tokens[request.num_prompt :], previous=request.hashes[-1])
            row.num_cached = num_cached
            self._index.register(row, keys=keys[:num_cached], hashes=hashes[:num_cached])
        for request in self._running:
            request.row.num_cached = request.num_cached
        self._table.park([request.row for request in requests])
        for request in requests:
            request.row = None
        left = [request for request in self._running if request.row is not None]
        self._running = sorted(left, key=lambda request: request.row.index)
        self._batch = None

    def _gather(self) -> RunningBatch:
        running, device = self._running, self._device
        lengths = [request.num_cached for request in running]
        controls = SamplingControls.of(
            [request.sampling for request in running], vocab_size=self._decoder.vocab_size, device=device
        )
        return RunningBatch(
            tokens_R=torch.tensor([request.tokens[-1] for request in running], device=device),
            lengths_R=torch.tensor(lengths, device=device),
            rope_shift_R=torch.tensor([request.rope_shift for request in running], device=device),
            max_length=max(lengths),
            controls=controls,
            seen_RV=None if controls.presence_penalty_R1 is None else self._seen(),
        )

    def _seen(self) -> Tensor:
        """bool ``[R, V]``: the tokens that each running request has sampled; its prompt does not count."""
        seen_RV = torch.zeros(len(self._running), self._decoder.vocab_size, dtype=torch.bool, device=self._device)
        for row_V, request in zip(seen_RV, self._running, strict=True):
            row_V[request.tokens[request.num_prompt :]] = True
        return seen_RV
