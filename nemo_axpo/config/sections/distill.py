"""A teacher's trajectories, and questions worth training on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nemo_axpo.config.sections.base import Count, NonNegative, Positive, Probability, Section


class EndpointConfig(Section):
    """A teacher behind an OpenAI-compatible chat endpoint."""

    url: str | None = None
    """Up to and without ``/chat/completions``, e.g. ``http://host:8000/v1``."""
    model: str | None = None
    """Name under which the endpoint knows the teacher."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable of the key, which is never part of a config; null: the endpoint needs none."""
    body: dict[str, Any] = {}
    """Further fields of every request; null removes one."""
    max_concurrent: Count = 64
    """Requests on their way at the same time."""
    timeout_s: Positive = 600.0
    """Of one attempt."""
    max_retries: Annotated[int, Field(ge=0)] = 4
    """Of an attempt that met a busy or absent endpoint, with growing pauses."""
    max_time_s: Positive = 1_800.0
    """Of all attempts of one turn together."""


class DistillConfig(Section):
    """A teacher's right answers as trajectories for supervised training."""

    teacher: Literal["engine", "endpoint", "scripted"] = "engine"
    """The checkpoint model.path on the config's engine; a chat endpoint; or the embedded world's script. For the last two,
    model.path is the student: its tokenizer and image processor decide how rows are written."""
    endpoint: EndpointConfig = EndpointConfig()
    num_questions: Count | None = None
    """Of the training stream; null: all, where it has an end."""
    num_rollouts: Count = 4
    """K: rollouts of the teacher per question."""
    num_concurrent: Count = 32
    """Questions under way at the same time."""
    temperature: NonNegative = 1.0
    """Of the teacher; 0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Tokens are sampled among the likeliest that have this probability together."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps the whole vocabulary; endpoints are asked by ``endpoint.body``."""
    max_per_question: Count = 1
    """Right trajectories kept of a question."""
    tool_share: Probability | None = 0.25
    """Share of the kept trajectories with a tool call, by leaving out some of the other kind; null: as it comes."""
    direct_accuracy: Probability = 0.5
    """Of the scripted teacher: share of right answers without a tool call."""


class FilterConfig(Section):
    """Which questions are worth reinforcement learning."""

    teacher: str | None = None
    """Directory of ``nemo-axpo distill``: questions its teacher never solved are dropped; null: none are for that."""
    num_questions: Count | None = None
    """Of the training stream; null: all, where it has an end."""
    num_rollouts: Count = 4
    """Rollouts of the policy per question; solved in all of them, it is dropped."""
    num_concurrent: Count = 32
    """Questions under way at the same time."""
    temperature: NonNegative = 1.0
    """Of the policy; 0 is greedy decoding."""
