"""Evaluations: during training, and on benchmarks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemo_axpo.config.sections.base import Count, NonNegative, Positive, Section


class EvalConfig(Section):
    """Evaluation on held-out questions."""

    num_questions: Count = 300
    """Held-out questions of an evaluation."""
    num_rollouts: Count = 4
    """Rollouts per question: k of Pass@k."""
    seed: int = 1_000_003
    """Chooses the held-out questions, and nothing else does: every run is asked the same ones."""
    temperature: NonNegative = 1.0
    """0 is greedy decoding."""
    window_questions: Annotated[int, Field(ge=0)] = 600
    """Questions, N rollouts each, on which a warm start is measured; 0 skips it."""


class BenchmarksConfig(Section):
    """How benchmarks are asked (``nemo-axpo eval --benchmark``); defaults are the paper's where it has one."""

    num_rollouts: Count = 4
    """Rollouts per question: k of Pass@k."""
    temperature: NonNegative = 0.7
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Tokens are sampled among the likeliest that have this probability together."""
    top_k: Annotated[int, Field(ge=0)] = 20
    """0 keeps the whole vocabulary."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 1.5
    """Subtracted from the logits of tokens that the turn already holds."""
    max_turns: Count = 5
    """Model segments of a rollout."""
    max_new_tokens: Count | None = None
    """Tokens sampled in one turn; null: as many as the row has room for."""
    max_row_tokens: Count = 32_768
    """Tokens of a whole row: prompt, model segments, observations, images."""
    max_time_s: Positive = 3_600.0
    """Wall seconds of one rollout."""
    seed: int = 0
    """Of the sampling and of the intervals."""
    max_questions_in_flight: Count = 32
    """Questions asked at the same time, all their rollouts at once; their images are in memory."""
    max_failures: Count = 8
    """Questions in a row that nobody could answer or judge, after which the evaluation stops: something is down."""
    keep_text: bool = True
    """Records hold what the model wrote, and not its answers alone."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""
    num_resamples: Count = 10_000
    """Of the bootstrap."""
