"""Keeps the engine busy: all rollouts of a step at once, lost ones retried, rewards set by the verifiers.

Order of the result: questions (or prefixes) as given, then n (or k), whichever finished first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.engines.base import EngineError
from nemo_axpo.errors import rule_message
from nemo_axpo.rewards.base import VerifierRegistry, VerifierUnavailableError
from nemo_axpo.rollouts.agent import Agent, RolloutJob
from nemo_axpo.rollouts.resampler import continuation_jobs
from nemo_axpo.types import Question, Rollout, RolloutStatus, ThinkingPrefix

Result = TypeVar("Result")

OnFinished = Callable[[str, Rollout | None], None]
"""Gets the question id and the rewarded rollout, None for one that stayed lost."""

logger = logging.getLogger(__name__)


class Producer:
    """Turns questions into rewarded rollouts."""

    def __init__(
        self,
        agent: Agent,
        *,
        verifiers: VerifierRegistry,
        max_retries: int = 2,
        max_verifier_retries: int = 2,
        max_lost: float = 1.0,
        retry_delay_s: float = 1.0,
    ) -> None:
        """``max_retries``: further attempts for a rollout lost to infrastructure, before it is left out.

        ``max_verifier_retries``: the same for its reward, where a verifier is unavailable.
        ``max_lost``: share of the rollouts of a step or an evaluation that may be left out; above it the run stops.
        ``retry_delay_s``: pause before the first of them; it doubles with every further one.
        """
        if min(max_retries, max_verifier_retries, retry_delay_s) < 0:
            raise ValueError(
                f"retries and retry_delay_s must be 0 or more, got {max_retries}, {max_verifier_retries} and "
                f"{retry_delay_s}: 0 retries leave a lost rollout out at once"
            )
        if not 0 <= max_lost <= 1:
            raise ValueError(rule_message("max_lost is a share from 0 to 1", got=max_lost, cure="use 0.2"))
        self._max_verifier_retries, self._max_lost = max_verifier_retries, max_lost
        self._agent, self._verifiers = agent, verifiers
        self._max_retries, self._retry_delay_s = max_retries, retry_delay_s

    @property
    def renderer(self) -> ChatRenderer:
        """Renders the prompts of its rollouts."""
        return self._agent.renderer

    async def run_rollouts(
        self,
        questions: Sequence[Question],
        *,
        num_rollouts: int,
        seed: int,
        on_finished: OnFinished | None = None,
    ) -> tuple[Rollout, ...]:
        """N rollouts per question, ``<question>/0`` to ``<question>/<N-1>``; fewer where some stayed lost.

        ``seed``: of the run and step. ``on_finished`` is called after every rollout. ValueError for a question id that
        occurs twice: groups are formed by it.
        """
        _check_unique(questions)

        async def run_group(question: Question) -> tuple[Rollout, ...]:
            prompt = self._agent.renderer.prompt(question)
            ids = [f"{question.question_id}/{n}" for n in range(num_rollouts)]
            jobs = [RolloutJob(id, question, prompt, prompt, seed, n) for n, id in enumerate(ids)]
            return await self._run_all(jobs, on_finished=on_finished)

        groups = await _gather([run_group(question) for question in questions])
        rollouts = tuple(rollout for group in groups for rollout in group)
        check_not_all_lost(rollouts, num_jobs=len(questions) * num_rollouts)
        self._check_share(len(rollouts), num_jobs=len(questions) * num_rollouts)
        return rollouts

    async def resample(
        self, prefixes: Sequence[ThinkingPrefix], *, questions: Sequence[Question], num_continuations: int, seed: int
    ) -> tuple[Rollout, ...]:
        """K continuations per prefix. ``questions``: at least those of the prefixes, in any order."""
        by_id = {question.question_id: question for question in questions}
        groups = await _gather(
            [
                self.continue_prefix(
                    prefix, question=by_id[prefix.question_id], num_continuations=num_continuations, seed=seed
                )
                for prefix in prefixes
            ]
        )
        continuations = tuple(rollout for group in groups for rollout in group)
        check_not_all_lost(continuations, num_jobs=len(prefixes) * num_continuations)
        return continuations

    async def continue_prefix(
        self, prefix: ThinkingPrefix, *, question: Question, num_continuations: int, seed: int
    ) -> tuple[Rollout, ...]:
        """K continuations of one prefix; fewer, or none, where some stayed lost."""
        return await self._run_all(
            continuation_jobs(prefix, question=question, num_continuations=num_continuations, seed=seed)
        )

    async def _run_all(
        self, jobs: Sequence[RolloutJob], *, on_finished: OnFinished | None = None
    ) -> tuple[Rollout, ...]:
        """The rollouts that were not lost, in the order of ``jobs``."""

        async def run(job: RolloutJob) -> Rollout | None:
            rollout = await self._run(job)
            if on_finished:
                on_finished(job.question.question_id, rollout)
            return rollout

        rollouts = await _gather([run(job) for job in jobs])
        return tuple(rollout for rollout in rollouts if rollout is not None)

    async def _run(self, job: RolloutJob) -> Rollout | None:
        """One rewarded rollout; None when every attempt was lost, or no verifier could judge it."""
        rollout = await self.sample(job)
        reward = rollout and await self.reward(job.question, rollout.answer, rollout_id=job.rollout_id)
        return None if reward is None else replace(rollout, reward=reward)

    async def sample(self, job: RolloutJob) -> Rollout | None:
        """One rollout without its reward; None when every attempt was lost. A retry has the seeds of the first attempt."""
        for attempt in range(1 + self._max_retries):
            if attempt:
                await asyncio.sleep(self._retry_delay_s * 2 ** (attempt - 1))
            rollout = await self._agent.run(job)
            if rollout.status is not RolloutStatus.LOST:
                return rollout
        logger.warning("rollout %s was lost in %d attempts and is left out", job.rollout_id, 1 + self._max_retries)
        return None

    async def reward(self, question: Question, answer: str | None, *, rollout_id: str) -> float | None:
        """1.0 or 0.0; None where no verifier could judge the answer: what is not known is not wrong."""
        for attempt in range(1 + self._max_verifier_retries):
            if attempt:
                await asyncio.sleep(self._retry_delay_s * 2 ** (attempt - 1))
            try:
                return await self._verifiers.reward(question, answer)
            except VerifierUnavailableError as error:
                logger.warning("rollout %s could not be verified: %s", rollout_id, error)
        logger.warning("rollout %s has no reward after %d attempts", rollout_id, attempt + 1)
        return None

    def _check_share(self, num_left: int, *, num_jobs: int) -> None:
        """What is lost is not any rollout, so that the rest misleads where much is lost.

        A dead tool server leaves those without a tool, a judge that is down what a rule finds right.
        """
        num_lost = num_jobs - num_left
        if num_lost > self._max_lost * num_jobs:
            rule = f"at most {self._max_lost:.0%} of the rollouts may be lost (rollout.max_lost), as the rest misleads"
            cure = "see the warnings above for what is down; restart it and resume the run"
            raise EngineError(rule_message(rule, got=f"{num_lost} of {num_jobs}", cure=cure))


def check_not_all_lost(rollouts: Sequence[object], *, num_jobs: int) -> None:
    """EngineError where every one of ``num_jobs`` rollouts was lost; ``rollouts``: those that were not, or their scores."""
    if num_jobs and not rollouts:
        raise EngineError(
            f"all {num_jobs} rollouts were lost, each in several attempts: the engine, the tool servers or the "
            "verifiers are down, see the warnings above; restart them and resume the run"
        )


async def _gather(coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results in order; the first failure cancels the rest and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _check_unique(questions: Sequence[Question]) -> None:
    for question_id, count in Counter(question.question_id for question in questions).items():
        if count > 1:
            raise ValueError(
                f"question id {question_id!r} occurs {count} times in one step: groups are formed by id, make the ids "
                "of the data unique"
            )
