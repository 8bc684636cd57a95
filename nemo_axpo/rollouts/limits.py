"""What bounds one rollout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutLimits:
    """Bounds of one rollout; a continuation's frozen prefix counts against all of them but the time."""

    max_new_tokens: int
    """Model tokens of one turn."""
    max_row_tokens: int
    """Tokens of the whole row: prompt, image tokens, model tokens and observations."""
    max_turns: int = 3
    """Model segments; a tool call in the last one ends the rollout unanswered."""
    max_time_s: float = 3600.0
    """Seconds of wall clock, waiting for the engine included; a rollout that exceeds it is wrong, not lost.

    It cuts a completion short; a tool call has a limit of its own (``ToolExecutor``).
    """

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_row_tokens", "max_turns", "max_time_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}: raise it in the rollout limits")
        if self.max_new_tokens > self.max_row_tokens:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) must not exceed max_row_tokens ({self.max_row_tokens}): a "
                "turn is part of its row, lower the first or raise the second"
            )

    def leaves_room(self, num_prompt_tokens: int) -> bool:
        """Whether a row that starts with such a prompt can hold a token of the model."""
        return num_prompt_tokens < self.max_row_tokens
