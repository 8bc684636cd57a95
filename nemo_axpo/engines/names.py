"""Names of engines, for code that must not load any."""

from __future__ import annotations

SERVER_ENGINES = ("trtllm",)
"""Engines that sample on servers which already run (``engine.servers``)."""
