"""What an embedded engine has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatistics:
    """Counters since the engine was built. ``num_prefill_tokens + num_reused_tokens`` is every prompt token served."""

    num_generated_tokens: int = 0
    num_prefill_tokens: int = 0
    """Prompt tokens whose keys and values were computed."""
    num_reused_tokens: int = 0
    """Prompt tokens whose keys and values came from another row or stayed in place."""
    num_steps: int = 0
    """Decode steps, each one token for every running request."""
    num_encoded_images: int = 0
    """Images that went through the vision tower."""
