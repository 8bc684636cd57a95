"""What vLLM has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VllmStatistics:
    """Counters of the requests that ended."""

    num_generated_tokens: int
    num_prefill_tokens: int
    """Prompt tokens whose keys and values were computed."""
    num_reused_tokens: int
    """Prompt tokens that vLLM's prefix cache held; whole blocks."""
