"""Rollouts as the tensors that an actor under NeMo-Aligner returns from ``infer``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nemo_axpo.aligner.rows import FILLER, RowRecord, RowTable, pack_tokens
from nemo_axpo.types import Rollout


def pack_rollouts(
    rollouts: Sequence[Rollout],
    *,
    table: RowTable,
    rows: dict[str, int],
    questions: dict[str, int],
    pad_id: int,
    temperature: float,
) -> dict[str, Tensor]:
    """Rollouts in the form that ``infer`` returns.

    Besides NeMo-Aligner's ``response_tokens [R, S]``, ``prompt_lengths``, ``response_lengths``, ``is_end`` and ``rewards``:
    ``row``, the number in the side table; ``question``, its index in the stream (equal prompts with other pictures are other
    questions); ``source``, for a continuation the row whose thinking prefix it continues, else -1; ``prefix_lengths``, the
    tokens before what it sampled itself, 0 for an ordinary rollout. ``rows`` learns the new row numbers by rollout id.
    """
    for rollout in rollouts:
        version = min(turn.completion.policy_version for turn in rollout.turns)
        record = RowRecord(rollout.rollout_id, rollout.question_id, rollout.image_ids, version, temperature)
        rows[rollout.rollout_id] = table.add(record)
    sources = [rows[row.prefix.source_rollout_id] if row.prefix else FILLER for row in rollouts]
    return {
        **pack_tokens([rollout.token_ids for rollout in rollouts], pad_id=pad_id),
        "prompt_lengths": _integers(len(rollout.turns[0].prompt_delta.token_ids) for rollout in rollouts),
        "is_end": torch.tensor([rollout.answer is not None for rollout in rollouts], dtype=torch.bool),
        "rewards": torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float32),
        "row": _integers(rows[rollout.rollout_id] for rollout in rollouts),
        "question": _integers(questions[rollout.question_id] for rollout in rollouts),
        "source": _integers(sources),
        "prefix_lengths": _integers(row.prefix.num_tokens if row.prefix else 0 for row in rollouts),
    }


def _integers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
