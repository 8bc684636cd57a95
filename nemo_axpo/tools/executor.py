"""Runs tool calls: one fresh state per rollout, a time limit per call, and every failure of a call as data."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nemo_axpo.tools.base import ToolSession
from nemo_axpo.tools.limits import CallLimit, CallSlots
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.types import ImageId, ToolCall, ToolResult

_TAG = re.compile(r"<(?=\|[a-z_]+\|>|/?(?:think|tool_call|tool_response)>)")
"""Opening bracket of text that the tokenizer would read as a control token."""


class ToolExecutor:
    """Opens the tool state of a rollout; shared by all rollouts."""

    def __init__(
        self,
        registry: ToolRegistry,
        *,
        timeout_s: float = 60.0,
        limits: Mapping[str, CallLimit] | None = None,
        max_error_chars: int = 400,
    ) -> None:
        """``limits``: of a tool's calls, by its name, above those tools set themselves; ``timeout_s``: where there is none.

        ``max_error_chars``: longer error texts are cut (they become tokens of the row); the result's text is not.
        """
        if timeout_s <= 0 or max_error_chars < 1:
            raise ValueError(
                f"timeout_s and max_error_chars must be positive, got {timeout_s} and {max_error_chars}: "
                "a tool call needs time to run and an error needs words"
            )
        self.registry = registry
        self._limits = {name: CallLimit(timeout_s) for name in registry.names} | dict(limits or {})
        self._slots = CallSlots(self._limits)
        self._max_error_chars = max_error_chars

    def open(self, image_ids: Sequence[ImageId]) -> ToolState:
        """Fresh tool state for one rollout whose prompt shows ``image_ids``."""
        return ToolState(
            self.registry, image_ids, limits=self._limits, slots=self._slots, max_error_chars=self._max_error_chars
        )


class ToolState:
    """Sessions and images of one rollout. Calls come one after the other."""

    def __init__(
        self,
        registry: ToolRegistry,
        image_ids: Sequence[ImageId],
        *,
        limits: Mapping[str, CallLimit],
        slots: CallSlots,
        max_error_chars: int,
    ) -> None:
        self._registry = registry
        self._images = list(image_ids)
        self._sessions: dict[str, ToolSession] = {}
        self._limits, self._slots, self._max_error_chars = limits, slots, max_error_chars

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """Images of the prompt, then those tools returned, in order: what ``img_idx`` counts."""
        return tuple(self._images)

    async def run(self, call: ToolCall) -> ToolResult:
        """The observation of a call; a malformed one is answered with its error. ToolUnavailableError passes.

        Its latency includes the wait for a slot.
        """
        started = time.perf_counter()
        result = ToolResult(call.error, error=call.error_kind) if call.error else await self._execute(call)
        self._images.extend(result.image_ids)
        return replace(result, text=self._clean(result), latency_s=time.perf_counter() - started)

    async def close(self) -> None:
        """Closes every session that was opened."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def _execute(self, call: ToolCall) -> ToolResult:
        if call.name not in self._sessions:
            self._sessions[call.name] = self._registry[call.name].open(self._images)
        timeout_s = self._limits[call.name].timeout_s
        async with self._slots.slot(call.name):
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._sessions[call.name].call(call.arguments)
            except TimeoutError:
                return ToolResult(f"{call.name} ran longer than {timeout_s:g} s", error="timeout")

    def _clean(self, result: ToolResult) -> str:
        """Text that is safe to tokenise: an observation must not forge a turn, a tag or an image placeholder."""
        text = result.text[: self._max_error_chars] if result.error else result.text
        return _TAG.sub("< ", text.encode("utf-8", "replace").decode())
