"""Asks the questions of a benchmark that have no complete record yet, a window of them at a time.

    question ──▶ rollouts that are missing, all at once ──▶ answers judged ──▶ a line in the file of records
                                                                                 its images leave the memory

Engine and judge may go down: a question keeps the rollouts it got, unjudged ones included, and the next start goes on from
there. After several such questions in a row nothing new is asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nemo_axpo.data.images import ImageStore
from nemo_axpo.eval.benchmarks.questions import BenchmarkQuestions, QuestionPlace
from nemo_axpo.eval.benchmarks.records import AnsweredQuestion, AnsweredRollout, RecordFile
from nemo_axpo.rollouts.agent import RolloutJob
from nemo_axpo.rollouts.metrics import num_sampled_tokens
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.types import ImageId, Question, Rollout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AskingSettings:
    """How a benchmark is asked."""

    num_rollouts: int
    seed: int
    max_questions_in_flight: int
    max_failures: int
    keep_text: bool


@dataclass(frozen=True)
class Outcome:
    """How far a benchmark came."""

    num_asked: int
    """Questions that were worked on now."""
    num_open: int
    """Of these, without all their rollouts and rewards."""
    has_stopped: bool
    """Whether too many in a row failed, and the rest was not asked."""


class Asker:
    """Works through the questions of one benchmark."""

    def __init__(self, producer: Producer, *, images: ImageStore, settings: AskingSettings) -> None:
        self._producer, self._settings = producer, settings
        self._images = _HeldImages(images)
        self._renderer = producer.renderer
        self._num_failures_in_a_row = 0

    async def ask(
        self,
        questions: BenchmarkQuestions,
        *,
        known: Mapping[str, AnsweredQuestion],
        file: RecordFile,
        on_finished: Callable[[], None] = lambda: None,
        places: Sequence[QuestionPlace] | None = None,
    ) -> Outcome:
        """Asks the ``places`` (default: all) that have no complete record in ``known``; calls ``on_finished`` after each.

        DataError for an image that cannot be decoded, ValueError for a prompt that leaves no room.
        """
        wanted = questions.places if places is None else places
        todo = [place for place in wanted if not self._is_done(known.get(place.id))]
        free, open_ids = asyncio.Semaphore(self._settings.max_questions_in_flight), []
        self._num_failures_in_a_row = num_asked = 0

        async def work(place: QuestionPlace) -> None:
            try:
                record = await self._one(questions, place, known.get(place.id))
                file.append(record)
                if not self._is_done(record):
                    open_ids.append(place.id)
                on_finished()
            finally:
                free.release()

        try:
            async with asyncio.TaskGroup() as group:
                for place in todo:
                    await free.acquire()
                    if self._should_stop:
                        break
                    num_asked += 1
                    group.create_task(work(place))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return Outcome(num_asked, len(open_ids), has_stopped=num_asked < len(todo))

    @property
    def _should_stop(self) -> bool:
        return self._num_failures_in_a_row >= self._settings.max_failures

    def _is_done(self, record: AnsweredQuestion | None) -> bool:
        return record is not None and record.is_complete(self._settings.num_rollouts)

    async def _one(
        self, questions: BenchmarkQuestions, place: QuestionPlace, before: AnsweredQuestion | None
    ) -> AnsweredQuestion:
        """Brings the record of one question as far as engine and verifiers allow."""
        record = questions.record(place)
        question = record.to_question(self._images.store)
        with self._images.holding(question.image_ids) as used:
            have = before.rollouts if before else ()
            missing = before.missing(self._settings.num_rollouts) if before else range(self._settings.num_rollouts)
            sampled = await self._sample(question, missing)
            used.update(image_id for rollout in sampled.values() for image_id in rollout.image_ids)
        rows = [*have, *(self._answered(number, rollout) for number, rollout in sampled.items())]
        judged = await asyncio.gather(*(self._judge(question, row) for row in rows))
        self._note(judged)
        rollouts = tuple(sorted(judged, key=lambda row: row.number))
        return AnsweredQuestion(place.id, record.kind, question.answers, rollouts)

    async def _sample(self, question: Question, numbers: Sequence[int]) -> dict[int, Rollout]:
        """The rollouts with these numbers that were not lost."""
        prompt = self._renderer.prompt(question)
        jobs = [
            RolloutJob(f"{question.question_id}/{number}", question, prompt, prompt, self._settings.seed, number)
            for number in numbers
        ]
        rollouts = await asyncio.gather(*(self._producer.sample(job) for job in jobs))
        return {number: rollout for number, rollout in zip(numbers, rollouts, strict=True) if rollout is not None}

    def _answered(self, number: int, rollout: Rollout) -> AnsweredRollout:
        return AnsweredRollout(
            number,
            rollout.answer,
            None,
            tuple(turn.tool_call.name for turn in rollout.turns if turn.tool_call is not None),
            len(rollout.turns),
            num_sampled_tokens(rollout),
            str(rollout.status),
            self._text(rollout) if self._settings.keep_text else "",
        )

    def _text(self, rollout: Rollout) -> str:
        """Everything after the prompt, an image as one placeholder."""
        turns = rollout.turns
        shown = [(), *(turn.prompt_delta.token_ids for turn in turns[1:])]
        token_ids = [i for before, turn in zip(shown, turns) for i in (*before, *turn.completion.token_ids)]
        pad = self._renderer.special.image_pad
        once = [token for token, last in zip(token_ids, [None, *token_ids]) if token != pad or last != pad]
        return self._renderer.decode(once)

    async def _judge(self, question: Question, row: AnsweredRollout) -> AnsweredRollout:
        if row.reward is not None:
            return row
        rollout_id = f"{question.question_id}/{row.number}"
        return replace(row, reward=await self._producer.reward(question, row.answer, rollout_id=rollout_id))

    def _note(self, rows: Sequence[AnsweredRollout]) -> None:
        """Counts questions in a row of which nothing is known."""
        is_known = any(row.reward is not None for row in rows)
        self._num_failures_in_a_row = 0 if is_known else self._num_failures_in_a_row + 1
        if self._num_failures_in_a_row == self._settings.max_failures:
            logger.warning("%d questions in a row failed: no further ones are asked", self._num_failures_in_a_row)


class _HeldImages:
    """Images of the questions in flight; those of a question that has ended leave the store unless another one shows them."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self._holders: Counter[ImageId] = Counter()

    def holding(self, image_ids: Sequence[ImageId]) -> _Hold:
        """A context; images added to the set it gives (crops of the question's own) leave the store with it."""
        return _Hold(self, image_ids)

    def take(self, image_ids: Sequence[ImageId]) -> None:
        self._holders.update(image_ids)

    def give(self, image_ids: Sequence[ImageId], *, made: set[ImageId]) -> None:
        self._holders.subtract(image_ids)
        if not any(self._holders[image_id] > 0 for image_id in image_ids):
            self.store.drop([i for i in {*image_ids, *made} if self._holders[i] <= 0])
        self._holders += Counter()  # forgets what nobody holds


class _Hold:
    def __init__(self, images: _HeldImages, image_ids: Sequence[ImageId]) -> None:
        self._images, self._ids, self._made = images, list(image_ids), set()

    def __enter__(self) -> set[ImageId]:
        self._images.take(self._ids)
        return self._made

    def __exit__(self, *exception: object) -> None:
        self._images.give(self._ids, made=self._made)
