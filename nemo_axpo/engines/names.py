"""Names of engines, for code that must not load any."""

from __future__ import annotations

SERVER_ENGINES = ("vllm_server", "trtllm")
"""Engines that sample on servers which already run (``engine.servers``)."""

UNSHARED_SERVER_ENGINES = ("trtllm",)
"""Whose servers do not say which weights they hold: a replica trusts only what it has pushed itself."""
