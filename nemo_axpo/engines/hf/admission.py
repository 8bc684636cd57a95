"""Waiting requests become running ones: rows are claimed, shared prefixes copied, the rest prefilled in waves.

A request whose prefix is being computed by another request of the same wave waits for it: level 0 is prefilled first,
its rows are copied to level 1, which is then prefilled, and so on. The last prompt token is never prefilled: the next
decode step feeds it, which gives the logits of the first sampled token.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_axpo.engines.hf.decoder import Decoder, PrefillChunk
from nemo_axpo.engines.hf.kv_cache import KvCache
from nemo_axpo.engines.hf.prefix_index import PrefixIndex
from nemo_axpo.engines.hf.requests import ActiveRequest
from nemo_axpo.engines.hf.rows import CacheRow, RowTable
from nemo_axpo.engines.hf.vision import VisionEncoder

MAX_SCORES_CPU, MAX_SCORES_GPU = 2**19, 2**26
"""Attention scores (queries × keys × heads) of one prefill pass: on a CPU they should stay in its cache."""


@dataclass(eq=False, slots=True)
class Admission:
    """One request about to run: its first ``num_shared`` tokens come from ``source`` (None: its row holds them)."""

    request: ActiveRequest
    row: CacheRow
    source: CacheRow | None
    num_shared: int
    level: int

    @property
    def num_new(self) -> int:
        """Tokens to prefill: all but the shared ones and the last."""
        return self.request.num_prompt - 1 - self.num_shared


class Admitter:
    """Moves requests from the waiting queue into the running rows."""

    def __init__(
        self,
        *,
        cache: KvCache,
        table: RowTable,
        index: PrefixIndex,
        decoder: Decoder,
        vision: VisionEncoder,
    ) -> None:
        self._cache = cache
        self._table = table
        self._index = index
        self._decoder = decoder
        self._vision = vision
        self._max_scores = MAX_SCORES_CPU if cache.device.type == "cpu" else MAX_SCORES_GPU

    def admit(self, waiting: deque[ActiveRequest], *, max_admitted: int) -> list[Admission]:
        """Takes requests from the front of ``waiting``, up to ``max_admitted`` or as rows allow, and prefills them."""
        plan = self._plan(waiting, max_admitted)
        plan.sort(key=lambda admission: (admission.level, -admission.num_new))
        self._table.start([admission.row for admission in plan])
        for _, level in itertools.groupby(plan, key=lambda admission: admission.level):
            members = list(level)
            self._copy_shared(members)
            for bucket in self._buckets([member for member in members if member.num_new]):
                self._prefill(bucket)
        for admission in plan:
            admission.row.num_cached = admission.request.num_prompt - 1
        return plan

    def _plan(self, waiting: deque[ActiveRequest], max_admitted: int) -> list[Admission]:
        plan: list[Admission] = []
        levels: dict[CacheRow, int] = {}
        pinned: set[CacheRow] = set()
        while waiting and len(plan) < max_admitted:
            admission = self._claim(waiting[0], levels=levels, pinned=pinned)
            if admission is None:
                break
            waiting.popleft()
            levels[admission.row] = admission.level
            num_known = admission.request.num_prompt - 1
            keys, hashes = admission.request.keys[:num_known], admission.request.hashes[:num_known]
            self._index.register(admission.row, keys=keys, hashes=hashes)
            admission.request.row = admission.row
            plan.append(admission)
        return plan

    def _claim(self, request: ActiveRequest, *, levels: dict[CacheRow, int], pinned: set[CacheRow]) -> Admission | None:
        """A row for ``request``; None where every row left is the source of an earlier request of this wave."""
        source, num_shared = self._index.find(request.keys, hashes=request.hashes, limit=request.num_prompt - 1)
        if source is None:
            row = self._claim_unused(pinned)
            return row and Admission(request, row, None, 0, 0)
        if self._table.is_parked(source) and source.num_cached == num_shared:
            self._table.claim_parked(source)
            return Admission(request, source, None, num_shared, 0)
        row = self._claim_unused(pinned | {source})
        if row is not None:
            self._table.touch(source)
            pinned.add(source)
            return Admission(request, row, source, num_shared, levels.get(source, -1) + 1)
        if self._table.is_parked(source) and source not in pinned:
            self._table.claim_parked(source)
            self._index.forget(source, keep=num_shared)
            source.num_cached = num_shared
            return Admission(request, source, None, num_shared, 0)
        return None

    def _claim_unused(self, pinned: set[CacheRow]) -> CacheRow | None:
        row = self._table.claim_unused(pinned=pinned)
        if row is not None:
            self._index.forget(row)
        return row

    def _copy_shared(self, members: Sequence[Admission]) -> None:
        copies = [member for member in members if member.source is not None]
        if copies:
            self._cache.copy(
                [member.source.index for member in copies],
                targets=[member.row.index for member in copies],
                num_positions=max(member.num_shared for member in copies),
            )

    def _buckets(self, members: Sequence[Admission]) -> Iterator[list[Admission]]:
        """Cuts ``members`` (longest first) so that padding at most doubles the work and the scores fit."""
        bucket: list[Admission] = []
        num_places = 0
        for member in members:
            num_places = max(num_places, member.request.num_prompt)
            longest = bucket[0].num_new if bucket else member.num_new
            num_scores = (len(bucket) + 1) * longest * num_places * self._decoder.num_heads
            if bucket and (2 * member.num_new < longest or num_scores > self._max_scores):
                yield bucket
                bucket, num_places = [], member.request.num_prompt
            bucket.append(member)
        if bucket:
            yield bucket

    def _prefill(self, bucket: Sequence[Admission]) -> None:
        """Prefills one bucket (neighbouring rows, longest first), cut along the tokens where scores would not fit."""
        longest = bucket[0].num_new
        per_token = len(bucket) * self._decoder.num_heads * max(member.request.num_prompt for member in bucket)
        step = max(1, self._max_scores // per_token)
        for offset in range(0, longest, step):
            members = [member for member in bucket if member.num_new > offset]
            starts = [member.num_shared + offset for member in members]
            counts = [min(member.num_new - offset, step) for member in members]
            self._decoder.prefill(self._chunk(members, starts=starts, counts=counts))

    def _chunk(self, members: Sequence[Admission], *, starts: list[int], counts: list[int]) -> PrefillChunk:
        device = self._cache.device
        requests = [member.request for member in members]
        spans = [slice(start, start + count) for start, count in zip(starts, counts)]
        tokens = [token for request, span in zip(requests, spans) for token in request.tokens[span]]
        positions_3N = np.concatenate([r.positions_3P[:, span] for r, span in zip(requests, spans)], axis=1)
        image_index, image_features = self._image_tokens(requests, spans=spans)
        return PrefillChunk(
            first_row=members[0].row.index,
            starts=starts,
            counts=counts,
            tokens_N=torch.tensor(tokens, device=device),
            positions_3N=torch.from_numpy(positions_3N).to(device),
            image_index_M=torch.tensor(image_index, dtype=torch.long, device=device),
            image_features_FMH=image_features,
        )

    def _image_tokens(
        self, requests: Sequence[ActiveRequest], *, spans: Sequence[slice]
    ) -> tuple[list[int], torch.Tensor]:
        """Packed indices of the placeholders within ``spans`` and their features ``[F, M, H]``."""
        needed = {}
        pieces: list[tuple[str, int, int]] = []
        index: list[int] = []
        offset = 0
        for request, span in zip(requests, spans):
            for image in request.images:
                start, stop = max(image.start, span.start), min(image.stop, span.stop)
                if start < stop:
                    needed[image.image_id] = image.features
                    pieces.append((image.image_id, start - image.start, stop - image.start))
                    index.extend(range(offset + start - span.start, offset + stop - span.start))
            offset += span.stop - span.start
        if not pieces:
            return index, torch.empty(0)
        known = self._vision.encode(needed)
        return index, torch.cat([known[image_id][:, start:stop] for image_id, start, stop in pieces], dim=1)
