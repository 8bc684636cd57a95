"""The algorithm: GRPO or AXPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nemo_axpo.config.sections.base import Positive, Section


class GrpoConfig(Section):
    """Group-relative policy optimisation."""

    name: Literal["grpo"] = "grpo"
    """The word that tells the two apart."""
    num_rollouts: Annotated[int, Field(ge=2)] = 8
    """N: ordinary rollouts per question."""


class AxpoConfig(Section):
    """GRPO plus resampling of tool calls where every tool-using rollout is wrong."""

    name: Literal["axpo"] = "axpo"
    """The word that tells the two apart."""
    num_rollouts: Annotated[int, Field(ge=2)] = 8
    """N: ordinary rollouts per question."""
    num_continuations: Annotated[int, Field(ge=2)] = 4
    """K: continuations per selected thinking prefix."""
    resample_ratio: Positive = 0.25
    """r: extra continuations a step, as a share of B·N."""


AlgorithmConfig = Annotated[GrpoConfig | AxpoConfig, Field(discriminator="name")]
