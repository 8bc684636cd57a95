"""Limits and sampling of training rollouts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemo_axpo.config.sections.base import Count, Positive, Section


class RolloutConfig(Section):
    """Limits and sampling of one training rollout."""

    max_turns: Count = 3
    """Model segments; a tool call in the last one leaves the rollout unanswered."""
    max_new_tokens: Count = 8_192
    """Tokens sampled in one turn."""
    max_row_tokens: Count = 20_480
    """Tokens of a whole row: prompt, model segments, observations, images."""
    max_time_s: Positive = 600.0
    """Wall seconds of one rollout."""
    temperature: Positive = 1.0
    """The trainer divides its logits by it too; greedy decoding has no gradient to learn from."""
    max_lost: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of a step's or an evaluation's rollouts that may be lost to infrastructure or stay without a verdict, on one replica;
    above it the run stops: a judge that is down, say, leaves what a rule finds right. 1: it stops where all are lost."""
