r"""Mathematical equality: ``\frac{1}{2}`` is 0.5, ``(x+1)^2`` is ``x^2+2x+1``, a set has no order; judged by math-verify."""

from __future__ import annotations

import asyncio
import logging

from nemo_axpo.rewards.exact_match import matches
from nemo_axpo.rewards.known_answers import KnownAnswer
from nemo_axpo.rewards.workers.pool import CallLimits, CallTooHardError, WorkerPool
from nemo_axpo.types import Question

_FUNCTION = "nemo_axpo.rewards.math_worker:is_equal"
logger = logging.getLogger(__name__)


class MathEquality:
    """Verifier in worker processes. An answer on which math-verify would compute for ever is wrong."""

    known_answers = (
        KnownAnswer("\\frac{1}{2}", "0.5", 1.0),
        KnownAnswer("(x+1)^2", "x^2+2x+1", 1.0),
        KnownAnswer("\\{1,2\\}", "\\{2,1\\}", 1.0),
        KnownAnswer("\\frac{1}{2}", "0.51", 0.0),
        KnownAnswer("12", "9**9**9**9", 0.0),
    )

    def __init__(
        self, *, num_workers: int = 2, limits: CallLimits | None = None, max_answer_chars: int = 2_000
    ) -> None:
        """``max_answer_chars``: a longer answer is wrong; no reference needs it, and parsing takes time."""
        self.pool = WorkerPool(_FUNCTION, num_workers=num_workers, limits=limits)
        self._max_answer_chars = max_answer_chars

    async def __call__(self, question: Question, answer: str) -> float:
        """1.0 or 0.0; what reads exactly as a reference is right without further ado."""
        return 1.0 if matches(question, answer) else await self.judge(question, answer)

    async def judge(self, question: Question, answer: str) -> float:
        """What math-verify says. VerifierUnavailableError where a worker fails."""
        if len(answer) > self._max_answer_chars:
            return 0.0
        try:
            return float(await self.pool.call(question.answers, answer))
        except CallTooHardError as error:
            logger.info("question %s: the answer %.80r is wrong: %s", question.question_id, answer, error)
            return 0.0

    async def close(self) -> None:
        """Ends the worker processes; they start again when asked again."""
        await asyncio.to_thread(self.pool.close)
