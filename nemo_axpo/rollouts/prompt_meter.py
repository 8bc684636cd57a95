"""How many tokens the prompts of questions have, and whether rows have room for more than them."""

from __future__ import annotations

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.errors import DataError, rule_message
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.types import Question


class PromptMeter:
    """Measures prompts as an agent with this renderer and these limits would ask them."""

    def __init__(self, renderer: ChatRenderer, *, limits: RolloutLimits) -> None:
        self._renderer, self._limits = renderer, limits

    @property
    def max_row_tokens(self) -> int:
        """What a prompt must be shorter than."""
        return self._limits.max_row_tokens

    def num_tokens(self, question: Question, *, where: str) -> int:
        """Tokens of the prompt, images included. ``where``: file and row, for the message.

        DataError for a question whose text spells a token that marks turns or images.
        """
        try:
            return len(self._renderer.prompt(question).token_ids)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None

    def check_room(self, num_tokens: int, *, question_id: str, where: str) -> None:
        """DataError for a prompt that leaves the model no room in a row."""
        if not self._limits.leaves_room(num_tokens):
            rule = f"{where}: the prompt of question {question_id!r} must be shorter than rollout.max_row_tokens"
            cure = "raise it, or leave the question out"
            raise DataError(rule_message(rule, got=f"{num_tokens} tokens, limit {self.max_row_tokens}", cure=cure))
