"""Attempts questions: K rollouts each, many questions at a time, every finished one on disk at once.

``workers`` questions are under way at any moment; one that ends makes room for the next, so a slow one holds up nothing.
Seeds hang on the question, so an interrupted command samples what an uninterrupted one would have.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nemo_axpo.data.image_files import ImageFiles
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.trajectories import trajectory_of
from nemo_axpo.distill.attempts import Attempt, AttemptLog
from nemo_axpo.engines.base import EngineError
from nemo_axpo.errors import RunFailedError, rule_message
from nemo_axpo.loop import QuestionSource
from nemo_axpo.rollouts.agent import PromptTooLongError
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.types import Question, Rollout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectSettings:
    """How questions are attempted."""

    num_questions: int
    """Questions 0 to this of the stream."""
    num_rollouts: int
    """K."""
    seed: int
    num_concurrent: int = 32
    """Questions under way at the same time."""
    max_lost: int = 8
    """So many questions lost one after another mean that something is down."""


@dataclass
class CollectResult:
    """What one call did."""

    num_attempted: int = 0
    num_lost: int = 0
    """Questions with a rollout that stayed lost; a resumed command attempts them again."""
    num_too_long: int = 0
    """Questions whose prompt leaves no room to answer; they are left out."""


class Collector:
    """Attempts the questions of a stream and writes them to a log."""

    def __init__(
        self,
        questions: QuestionSource,
        producer: Producer,
        *,
        images: ImageStore,
        log: AttemptLog,
        settings: CollectSettings,
        image_files: ImageFiles | None = None,
        on_attempt: Callable[[Attempt], None] = lambda attempt: None,
    ) -> None:
        """``image_files``: where pictures of right rollouts go; None keeps rewards alone, without trajectories."""
        self._questions, self._producer, self._images, self._log = questions, producer, images, log
        self._settings, self._files, self._on_attempt = settings, image_files, on_attempt
        self._shown: Counter[str] = Counter()
        self._result, self._num_lost_in_a_row = CollectResult(), 0

    async def run(self) -> CollectResult:
        """Attempts what the log lacks. RunFailedError where question after question is lost."""
        indices = (i for i in range(self._settings.num_questions) if i not in self._log.done)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.num_concurrent):
                    group.create_task(self._work(indices))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return self._result

    async def _work(self, indices: Iterator[int]) -> None:
        for index in indices:
            for question in self._questions.take(index, 1):
                await self._attempt(index, question)

    async def _attempt(self, index: int, question: Question) -> None:
        self._shown.update(question.image_ids)
        rollouts: tuple[Rollout, ...] = ()
        try:
            rollouts = await self._producer.run_rollouts(
                [question], num_rollouts=self._settings.num_rollouts, seed=self._settings.seed
            )
            self._keep(index, question, rollouts)
        except PromptTooLongError as error:
            self._result.num_too_long += 1
            logger.warning("question %s is left out: %s", question.question_id, error)
        except EngineError as error:
            self._lose(question, error)
        finally:
            self._forget(question, rollouts)

    def _keep(self, index: int, question: Question, rollouts: tuple[Rollout, ...]) -> None:
        """Writes a question down. EngineError where a rollout of it stayed lost."""
        if len(rollouts) < self._settings.num_rollouts:
            raise EngineError(f"{len(rollouts)} of {self._settings.num_rollouts} rollouts arrived")
        right = [rollout for rollout in rollouts if is_exemplary(rollout)] if self._files else []
        trajectories = tuple(trajectory_of(rollout, question=question) for rollout in right)
        for trajectory in trajectories:
            self._files.save(trajectory.image_ids, images=self._images)
        attempt = Attempt(
            index,
            question.question_id,
            question.source,
            tuple(rollout.reward for rollout in rollouts),
            tuple(rollout.uses_tool for rollout in rollouts),
            trajectories,
        )
        self._log.append(attempt)
        self._result.num_attempted += 1
        self._num_lost_in_a_row = 0
        self._on_attempt(attempt)

    def _lose(self, question: Question, error: EngineError) -> None:
        self._result.num_lost += 1
        self._num_lost_in_a_row += 1
        logger.warning("question %s is lost (%s); a resumed command attempts it again", question.question_id, error)
        if self._num_lost_in_a_row >= self._settings.max_lost:
            rule = "engine, tools and verifiers must answer"
            got = f"{self._num_lost_in_a_row} questions in a row lost, see the warnings above"
            raise RunFailedError(rule_message(rule, got=got, cure="restart what is down, then go on with --resume"))

    def _forget(self, question: Question, rollouts: tuple[Rollout, ...]) -> None:
        """Drops the question's pictures, and its tools', unless another question under way shows one of them."""
        self._shown.subtract(question.image_ids)
        if not any(self._shown[image_id] > 0 for image_id in question.image_ids):
            seen = {image_id for rollout in rollouts for image_id in rollout.image_ids}
            self._images.drop(seen | set(question.image_ids))


def is_exemplary(rollout: Rollout) -> bool:
    """Whether it is worth imitating: right, and every tool call could be read. A tool that fails is part of the lesson."""
    return rollout.reward > 0 and not any(turn.tool_call and turn.tool_call.error for turn in rollout.turns)
