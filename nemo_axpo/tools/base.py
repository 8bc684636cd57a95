"""The tool protocol: a schema the model reads, and one session per rollout.

A session starts fresh with every rollout and every continuation, so nothing a source rollout did can leak into the rows
resampled from its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from nemo_axpo.types import ImageId, ToolResult


class ToolUnavailableError(RuntimeError):
    """The tool's server is down (infrastructure, not the policy): the rollout is lost and retried, never wrong."""


class ToolSession(Protocol):
    """The state of one tool within one rollout."""

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        """Executes one call; ``arguments`` already satisfy the schema.

        What the model did wrong or a program that fails is a result with ``error`` set; ToolUnavailableError when the
        infrastructure fails. Anything else raised is a bug.
        """

    async def close(self) -> None:
        """Frees what the session holds; called once, also after a failure."""


@runtime_checkable
class Tool(Protocol):
    """One tool, shared by all rollouts of a process."""

    @property
    def name(self) -> str:
        """Name the model calls it by."""

    @property
    def schema(self) -> dict[str, Any]:
        """OpenAI function-calling form: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""

    def open(self, images: Sequence[ImageId]) -> ToolSession:
        """A fresh session. ``images``: a live view of the rollout's images; those tools return are appended to it."""
