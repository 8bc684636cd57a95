"""Who judges answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from nemo_axpo.config.sections.base import Count, NonNegative, Positive, Section
from nemo_axpo.errors import rule_message

VerifierName = Literal["exact_match", "multiple_choice", "token_f1", "number", "math", "judge"]


class MathRewardConfig(Section):
    """The verifier ``math``: worker processes with a deadline."""

    num_workers: Count = 2
    """Processes of every replica."""
    cpu_s: Positive = 3.0
    """CPU seconds of one answer; one that needs more is wrong."""
    stall_s: Positive = 60.0
    """Wall seconds of one answer; then the machine is too busy, and it is verified again."""
    memory_mib: Count = 1_024
    """Memory of one answer; one that needs more is wrong."""
    max_answer_chars: Count = 2_000
    """A longer answer is wrong."""


class JudgeConfig(Section):
    """The verifier ``judge``: a model behind an OpenAI-compatible endpoint."""

    url: str | None = None
    """Up to and without ``/chat/completions``, e.g. ``https://api.openai.com/v1``."""
    model: str | None = None
    """Name under which the endpoint knows the judge."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable of the key, which is never part of a config; null: the endpoint needs none."""
    body: dict[str, Any] = {}
    """Further fields of every request: temperature, max_tokens, reasoning_effort …"""
    has_rule: bool = True
    """An answer that reads as a reference is right without asking."""
    cache_dir: str | None = "outputs/judge_cache"
    """Verdicts on disk, shared by runs; null: none."""
    max_answer_chars: Count = 1_000
    """A longer answer is wrong: policies learn to talk a judge over."""
    max_concurrent: Count = 32
    """Requests on their way at the same time."""
    timeout_s: Positive = 60.0
    """Of one attempt."""
    max_retries: Annotated[int, Field(ge=0)] = 4
    """Of an attempt that met a busy or absent judge, with growing pauses."""
    max_time_s: Positive = 300.0
    """Of all attempts of one answer together."""


class RewardsConfig(Section):
    """Which verifier judges the answers of which data source."""

    sources: dict[str, VerifierName | tuple[VerifierName, ...]] = {
        "world": "exact_match",
        "world_specks": "exact_match",
    }
    """By source, one verifier, or several of which one must say right."""
    needs_answer_block: bool = True
    """False: where a turn has no ``<answer>`` block its last box counts, for policies that never learned the format."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts to verify an answer when the verifier fails, before its rollout is left out."""
    f1_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Smallest token F1 of a right answer."""
    number_tolerance: NonNegative = 1e-3
    """Largest difference of a right answer of the verifier ``number``."""
    math: MathRewardConfig = MathRewardConfig()
    judge: JudgeConfig = JudgeConfig()

    @property
    def verifiers(self) -> set[VerifierName]:
        """Every verifier that a source names."""
        return {name for names in self.sources.values() for name in ([names] if isinstance(names, str) else names)}

    def problems(self) -> Iterator[str]:
        """What is missing in the section; this machine is not asked."""
        if not self.sources:
            yield rule_message("rewards.sources names a verifier per data source", got="none", cure="add the source")
        if "judge" in self.verifiers:
            for key in ("url", "model"):
                if getattr(self.judge, key) is None:
                    cure = "name the endpoint and its model: rewards.judge.url=https://host/v1 rewards.judge.model=..."
                    yield rule_message(f"a judge needs rewards.judge.{key}", got="null", cure=cure)
        if self.math.stall_s <= self.math.cpu_s:
            rule = "rewards.math.stall_s (wall) must be above rewards.math.cpu_s"
            yield rule_message(rule, got=f"{self.math.stall_s} <= {self.math.cpu_s}", cure="raise it")
