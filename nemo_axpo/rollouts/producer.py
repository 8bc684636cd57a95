"""Keeps the engine busy: all rollouts of a step at once, lost ones retried, rewards set by the verifiers.

Order of the result: questions (or prefixes) as given, then n (or k), whichever finished first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from nemo_axpo.engines.base import EngineError
from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.rollouts.agent import Agent, RolloutJob
from nemo_axpo.rollouts.resampler import continuation_jobs
from nemo_axpo.types import Question, Rollout, RolloutStatus, ThinkingPrefix

logger = logging.getLogger(__name__)


class Producer:
    """Turns questions into rewarded rollouts."""

    def __init__(
        self, agent: Agent, *, verifiers: VerifierRegistry, max_retries: int = 2, retry_delay_s: float = 1.0
    ) -> None:
        """``max_retries``: further attempts for a rollout lost to infrastructure, before it is left out.

        ``retry_delay_s``: pause before the first of them; it doubles with every further one.
        """
        if max_retries < 0 or retry_delay_s < 0:
            raise ValueError(
                f"max_retries and retry_delay_s must be 0 or more, got {max_retries} and {retry_delay_s}: 0 retries "
                "leave a lost rollout out at once"
            )
        self._agent, self._verifiers = agent, verifiers
        self._max_retries, self._retry_delay_s = max_retries, retry_delay_s

    async def run_rollouts(
        self,
        questions: Sequence[Question],
        *,
        num_rollouts: int,
        seed: int,
        on_finished: Callable[[], None] | None = None,
    ) -> tuple[Rollout, ...]:
        """N rollouts per question, ``<question>/0`` to ``<question>/<N-1>``; fewer where some stayed lost.

        ``seed``: of the run and step. ``on_finished`` is called after every rollout, finished or lost. ValueError for a
        question id that occurs twice: groups are formed by it.
        """
        _check_unique(questions)
        jobs: list[RolloutJob] = []
        for question in questions:
            prompt = self._agent.renderer.prompt(question)
            jobs += [
                RolloutJob(f"{question.question_id}/{n}", question, prompt, prompt, seed, n)
                for n in range(num_rollouts)
            ]
        return await self._run_all(jobs, on_finished=on_finished)

    async def resample(
        self, prefixes: Sequence[ThinkingPrefix], *, questions: Sequence[Question], num_continuations: int, seed: int
    ) -> tuple[Rollout, ...]:
        """K continuations per prefix. ``questions``: at least those of the prefixes, in any order."""
        by_id = {question.question_id: question for question in questions}
        jobs: list[RolloutJob] = []
        for prefix in prefixes:
            question = by_id[prefix.question_id]
            jobs += continuation_jobs(prefix, question=question, num_continuations=num_continuations, seed=seed)
        return await self._run_all(jobs)

    async def _run_all(
        self, jobs: Sequence[RolloutJob], *, on_finished: Callable[[], None] | None = None
    ) -> tuple[Rollout, ...]:
        async def run(job: RolloutJob) -> Rollout | None:
            rollout = await self._run(job)
            if on_finished:
                on_finished()
            return rollout

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(job)) for job in jobs]
        except ExceptionGroup as errors:  # the first failure cancelled the rest: show it alone
            raise errors.exceptions[0] from None
        rollouts = tuple(rollout for task in tasks if (rollout := task.result()) is not None)
        if jobs and not rollouts:
            raise EngineError(
                f"all {len(jobs)} rollouts were lost in {1 + self._max_retries} attempts each: the engine or the tool "
                "servers are down, see the warnings above; restart them and resume the run"
            )
        return rollouts

    async def _run(self, job: RolloutJob) -> Rollout | None:
        """One rewarded rollout; None when every attempt was lost. A retry has the seeds of the first attempt."""
        for attempt in range(1 + self._max_retries):
            if attempt:
                await asyncio.sleep(self._retry_delay_s * 2 ** (attempt - 1))
            rollout = await self._agent.run(job)
            if rollout.status is not RolloutStatus.LOST:
                return replace(rollout, reward=await self._verifiers.reward(job.question, rollout.answer))
        logger.warning("rollout %s was lost in %d attempts and is left out", job.rollout_id, 1 + self._max_retries)
        return None


def _check_unique(questions: Sequence[Question]) -> None:
    for question_id, count in Counter(question.question_id for question in questions).items():
        if count > 1:
            raise ValueError(
                f"question id {question_id!r} occurs {count} times in one step: groups are formed by id, make the ids "
                "of the data unique"
            )
