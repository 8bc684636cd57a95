"""What vLLM's sampling parameters can hold, in this process and over HTTP."""

from __future__ import annotations

BAN = -100.0
"""Added to a banned token's logit, the least that vLLM takes: its probability is below e^-100 times that of a token whose
logit is as large, nothing in float32."""


def vllm_seed(seed: int) -> int:
    """A seed of 63 bits: the HTTP server takes signed numbers."""
    return seed % 2**63
