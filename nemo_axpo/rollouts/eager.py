"""Continuations that start before the step's last rollout is done, where their place in the plan is certain already.

Under a barrier the engine runs dry while the longest rollouts of a step finish. Here, whenever a question is complete or
cannot be resampled any more, the algorithm says which sources it will select however the rest of the step turns out; their
continuations start at once. The rest waits for the plan of the whole step. Seeds hang on (question, rollout, branch) alone, so the rows
are those of the barrier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nemo_axpo.algorithms.base import Algorithm
from nemo_axpo.algorithms.confidence import rollout_scores
from nemo_axpo.algorithms.group_statistics import is_correct
from nemo_axpo.data.samples import cut_prefix
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.types import Question, ResamplePlan, Rollout, RolloutScore


class EagerResampling:
    """The rollouts and continuations of one step on one engine."""

    def __init__(
        self,
        producer: Producer,
        questions: Sequence[Question],
        *,
        algorithm: Algorithm,
        num_elsewhere: int,
        seed: int,
    ) -> None:
        """``num_elsewhere``: questions of the step that other replicas sample; nothing is known of them meanwhile."""
        self._producer, self._algorithm, self._seed = producer, algorithm, seed
        self._questions = {question.question_id: question for question in questions}
        self._num_elsewhere = num_elsewhere
        self._num_running = {question_id: algorithm.num_rollouts for question_id in self._questions}
        self._finished: list[RolloutScore] = []
        self._rollouts: dict[str, Rollout] = {}
        self._running: dict[str, asyncio.Task[tuple[Rollout, ...]]] = {}

    async def roll_out(self) -> tuple[Rollout, ...]:
        """N rollouts of every question; meanwhile continuations of certain sources start."""
        try:
            return await self._producer.run_rollouts(
                tuple(self._questions.values()),
                num_rollouts=self._algorithm.num_rollouts,
                seed=self._seed,
                on_finished=self._rollout_finished,
            )
        except BaseException:
            self._cancel()
            raise

    async def continue_sources(self, plan: ResamplePlan) -> tuple[Rollout, ...]:
        """The continuations of the plan's sources that were sampled here, in the order of the plan, without lost ones."""
        here = [source for source in plan.sources if source.rollout_id in self._rollouts]
        self._start(ResamplePlan(tuple(here), plan.num_continuations))
        assert self._running.keys() == {source.rollout_id for source in here}, "a certain source is in every plan"
        try:
            arrived = [await self._running[source.rollout_id] for source in here]
        finally:
            self._cancel()
        return tuple(rollout for rows in arrived for rollout in rows)

    @property
    def num_started(self) -> int:
        """Sources whose continuations have been started."""
        return len(self._running)

    def _rollout_finished(self, question_id: str, rollout: Rollout | None) -> None:
        self._num_running[question_id] -= 1
        scores = rollout_scores([rollout] if rollout else [])
        self._finished += scores
        if rollout:
            self._rollouts[rollout.rollout_id] = rollout
        is_right = any(score.uses_tool and is_correct(score.reward) for score in scores)
        if is_right or not self._num_running[question_id]:  # what can make another question's place certain
            self._start(
                self._algorithm.certain_plan(
                    self._finished, num_running=self._num_running, num_unknown=self._num_elsewhere
                )
            )

    def _cancel(self) -> None:
        """Stops continuations that still run after a failure; without effect on finished ones."""
        for task in self._running.values():
            task.cancel()

    def _start(self, plan: ResamplePlan) -> None:
        for source in plan.sources:
            if source.rollout_id not in self._running:
                prefix = cut_prefix(self._rollouts[source.rollout_id], confidence=source.confidence)
                question = self._questions[source.question_id]
                self._running[source.rollout_id] = asyncio.get_running_loop().create_task(
                    self._producer.continue_prefix(
                        prefix, question=question, num_continuations=plan.num_continuations, seed=self._seed
                    )
                )
