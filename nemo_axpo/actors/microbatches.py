"""One optimizer step's samples are cut into micro-batches, each small enough for one forward and backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_axpo.actors.packing import FeatureStore, PackingCounts, PackingForm, VisionTokens, pack_rows, stack_rows
from nemo_axpo.data.balancing import run_cost, split_chain
from nemo_axpo.data.packing_order import packing_order
from nemo_axpo.models.qwen3_vl.inputs import PackedInputs
from nemo_axpo.types import TrainingSample


@dataclass(frozen=True)
class Microbatch:
    """B rows in packing order; L of their tokens are trained."""

    inputs: PackedInputs
    """On the CPU; on the device of the others while the micro-batch runs."""
    sample_B: tuple[int, ...]
    """Index of each row in the step's samples."""
    mask_BS: Tensor
    """bool: trained tokens."""
    target_L: Tensor
    """int64: ids of the trained tokens, row by row."""
    inverse_temperature_L: Tensor
    """float32."""
    advantages_BS: Tensor
    """float32."""
    engine_logprobs_BS: Tensor
    """float32."""
    counts: PackingCounts

    def spread(self, values_L: Tensor) -> Tensor:
        """Values of the trained tokens in their places, 0 elsewhere, ``[B, S]``; differentiable."""
        return torch.zeros(self.mask_BS.shape, device=values_L.device).masked_scatter(self.mask_BS, values_L)

    def gather_rows(self, rows: Sequence[Tensor]) -> Tensor:
        """One tensor ``[T]`` per sample of the step to this micro-batch's float32 ``[B, S]``."""
        stacked = torch.zeros(self.mask_BS.shape)
        for target, sample in zip(stacked, self.sample_B):
            target[: len(rows[sample])] = rows[sample]
        return stacked.to(self.mask_BS.device)


def plan_microbatches(
    samples: Sequence[TrainingSample],
    *,
    max_tokens: int,
    form: PackingForm = "padded",
    image_token_id: int | None = None,
) -> list[list[int]]:
    """Which samples run together, within ``max_tokens`` but for a single longer row.

    ``padded`` counts rows · longest row, ``thd`` the tokens that are left after sharing within a question.
    """
    if form == "thd":
        return _plan_by_packed_tokens(samples, max_tokens=max_tokens, image_token_id=image_token_id)
    return _plan_by_padded_tokens(samples, max_tokens=max_tokens)


def _plan_by_padded_tokens(samples: Sequence[TrainingSample], *, max_tokens: int) -> list[list[int]]:
    """A question's rows stay neighbours, because they share their beginning; questions are sorted by their longest row,
    so that rows of similar length meet and little is padded."""
    longest: dict[str, int] = {}
    for sample in samples:
        longest[sample.question_id] = max(longest.get(sample.question_id, 0), len(sample.token_ids))
    order = sorted(range(len(samples)), key=lambda i: (longest[samples[i].question_id], samples[i].question_id))
    plan: list[list[int]] = []
    width = 0
    for index in order:
        length = len(samples[index].token_ids)
        if not plan or (len(plan[-1]) + 1) * max(width, length) > max_tokens:
            plan.append([])
            width = 0
        plan[-1].append(index)
        width = max(width, length)
    return plan


@dataclass(frozen=True)
class _Length:
    """A row of a chain (:mod:`nemo_axpo.data.balancing`) whose cost is its tokens."""

    cost: int
    shared: int


def _plan_by_packed_tokens(
    samples: Sequence[TrainingSample], *, max_tokens: int, image_token_id: int | None
) -> list[list[int]]:
    """Runs of a question's rows, each to the first micro-batch with room for it, the longest first."""
    by_question: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_question.setdefault(sample.question_id, []).append(index)
    runs: list[tuple[int, list[int]]] = []
    for indices in by_question.values():
        rows = packing_order([samples[index] for index in indices], image_token_id=image_token_id)
        chain = [_Length(len(samples[indices[row.index]].token_ids), row.num_shared) for row in rows]
        for run in split_chain(chain, limit=max_tokens):
            members = [indices[rows[place].index] for place in run]
            runs.append((int(run_cost(chain[run.start : run.stop])), members))
    return _first_fit(sorted(runs, key=lambda run: -run[0]), room=max_tokens)


def _first_fit(runs: Sequence[tuple[int, list[int]]], *, room: int) -> list[list[int]]:
    bins: list[list[int]] = []
    left: list[int] = []
    for size, members in runs:
        number = next((number for number, free in enumerate(left) if free >= size), len(bins))
        if number == len(bins):
            bins.append([])
            left.append(room)
        bins[number] += members
        left[number] -= size
    return bins


def build_microbatch(
    samples: Sequence[TrainingSample],
    indices: Sequence[int],
    *,
    image_store: FeatureStore,
    vision: VisionTokens,
    multiple_of: int,
    device: torch.device,
    form: PackingForm = "padded",
) -> Microbatch:
    """Packs the samples at ``indices``. ValueError for rows whose images do not fit (see :func:`pack_rows`)."""
    chosen = [samples[index] for index in indices]
    inputs, rows = pack_rows(chosen, image_store=image_store, vision=vision, multiple_of=multiple_of, form=form)
    ordered = [chosen[row] for row in rows.order_B]

    def floats(name: str) -> Tensor:
        return torch.from_numpy(stack_rows([getattr(s, name) for s in ordered], dtype=np.float32)).to(device)

    inverse_temperature_B = np.array([1.0 / sample.temperature for sample in ordered], dtype=np.float32)
    return Microbatch(
        inputs=inputs,
        sample_B=tuple(indices[row] for row in rows.order_B),
        mask_BS=torch.from_numpy(rows.mask_BS).to(device),
        target_L=torch.from_numpy(rows.token_ids_BS[rows.mask_BS]).to(device),
        inverse_temperature_L=torch.from_numpy(inverse_temperature_B.repeat(rows.mask_BS.sum(axis=1))).to(device),
        advantages_BS=floats("advantages"),
        engine_logprobs_BS=floats("engine_logprobs"),
        counts=rows.counts,
    )
