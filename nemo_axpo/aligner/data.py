"""Questions for NeMo-Aligner's data loaders: a data set of indices into addressable streams.

The loaders deal indices to the replicas; the rank that samples a question renders it. So consumed samples, divided by the
questions of a step, are the step, as in the main loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nemo_axpo.aligner.rows import FILLER, RowRecord, RowTable, pack_tokens
from nemo_axpo.types import Rollout


@dataclass(frozen=True)
class QuestionIndices:
    """Items of a map-style data set; item i asks question i of the stream."""

    num_questions: int
    is_validation: bool = False

    def __len__(self) -> int:
        return self.num_questions

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.num_questions:
            raise IndexError(f"question {index} of {self.num_questions}")
        return {"question": int(index), "is_validation": self.is_validation}


def collate_questions(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One micro-batch of the rollout stage: ``question [b]``, and which stream it is from."""
    streams = {item["is_validation"] for item in items}
    assert len(streams) == 1, "a batch is from one stream"
    return {
        "question": torch.tensor([item["question"] for item in items], dtype=torch.int64),
        "is_validation": streams.pop(),
    }


class FinishedRewards:
    """A ``FutureResult`` of rewards that are known."""

    def __init__(self, rewards_R1: torch.Tensor) -> None:
        self._rewards_R1 = rewards_R1

    def result(self) -> torch.Tensor:
        """Rewards ``[R, 1]``."""
        return self._rewards_R1


class VerifierRewardModel:
    """NeMo-Aligner's reward model: the verifiers, which judge every rollout when it ends and again where they fail.

    The resampling of a step starts on their word while other rollouts still run, so no other reward model can take their
    place afterwards.
    """

    def infer_rm(self, rollout_batch: dict[str, torch.Tensor]) -> FinishedRewards:
        """Rewards of a batch that ``infer`` returned."""
        return FinishedRewards(rollout_batch["rewards"].unsqueeze(1))


def pack_rollouts(
    rollouts: Sequence[Rollout],
    *,
    table: RowTable,
    rows: dict[str, int],
    questions: dict[str, int],
    pad_id: int,
    temperature: float,
) -> dict[str, torch.Tensor]:
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


def _integers(values: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
