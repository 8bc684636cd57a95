"""Questions for NeMo-Aligner's data loaders: a data set of indices into addressable streams.

The loaders deal indices to the replicas; the rank that samples a question renders it. So consumed samples, divided by the
questions of a step, are the step, as in the main loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


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
