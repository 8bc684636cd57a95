"""The training loop, a stage at a time. It sees protocols alone; ``train.py`` names the backends.

    explore      questions → N rollouts each → plan → K continuations of each selected thinking prefix
    give_credit  rewards → one advantage per row → training samples
    update       old and reference log-probs where the loss needs them → optimizer steps
    sync         the actor's weights → the engine

GRPO runs the same stages with a plan that is always empty. The data position is the step itself: step s asks questions
s·B to (s+1)·B of the stream, and every seed is derived from (run seed, step, question, rollout, branch, turn), so a
resumed run needs nothing but the step to ask and sample what an uninterrupted one would have.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from nemo_axpo.algorithms.base import Algorithm
from nemo_axpo.algorithms.confidence import resample_scores, rollout_scores
from nemo_axpo.algorithms.metrics import rollout_metrics
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.samples import build_samples, cut_prefix, drop_without_advantage
from nemo_axpo.engines.base import Engine
from nemo_axpo.rollouts.metrics import num_sampled_tokens, rollout_cost
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.rollouts.seeds import derive_seed
from nemo_axpo.types import (
    Credit,
    Question,
    ResamplePlan,
    ResampleScore,
    Rollout,
    RolloutGroup,
    RolloutScore,
    TrainBatch,
    TrainingSample,
    group_rollouts,
)


class QuestionSource(Protocol):
    """An addressable stream of questions; equal indices give equal questions in every process."""

    def take(self, start: int, count: int) -> Sequence[Question]:
        """Questions ``start`` to ``start + count``, their images stored."""


class Actor(Protocol):
    """The policy in training."""

    policy_version: int

    def logprobs(self, samples: Sequence[TrainingSample]) -> list[Any]:
        """Log-probs of the trained tokens, one ``[T]`` per sample."""

    def update(
        self, batch: TrainBatch, *, loss: Any, lr: float | None = None, old_logprobs: Sequence[Any] | None = None
    ) -> dict[str, float]:
        """One optimizer step; returns metrics, means over trained tokens."""

    def hf_tensors(self) -> Iterable[tuple[str, Any]]:
        """Weights under Hugging Face names."""


@dataclass(frozen=True)
class Experience:
    """What one step sampled."""

    groups: tuple[RolloutGroup, ...]
    scores: tuple[RolloutScore, ...]
    plan: ResamplePlan
    continuations: tuple[Rollout, ...]
    resamples: tuple[ResampleScore, ...]

    @property
    def rows(self) -> tuple[Rollout, ...]:
        """Every row of the step: ordinary rollouts, then continuations."""
        return tuple(rollout for group in self.groups for rollout in group.rollouts) + self.continuations


@dataclass(frozen=True)
class Step:
    """One finished step: what was sampled, what was trained, and what it measured."""

    index: int
    experience: Experience
    credits: tuple[Credit, ...]
    samples: tuple[TrainingSample, ...]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the loop itself."""

    seed: int
    """Of the run."""
    num_questions: int
    """B per step."""
    temperature: float
    """Of the training rollouts."""
    num_minibatches: int = 1
    """Optimizer steps per step."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    lr: float = 2e-6


class TrainingLoop:
    """One policy, one engine, one algorithm. ``step`` advances by one step; who calls it decides when to stop."""

    def __init__(
        self,
        *,
        algorithm: Algorithm,
        loss: Any,
        actor: Actor,
        engine: Engine,
        producer: Producer,
        questions: QuestionSource,
        image_store: ImageStore,
        settings: LoopSettings,
    ) -> None:
        self._algorithm, self._loss, self._actor, self._engine = algorithm, loss, actor, engine
        self._producer, self._questions, self._images, self._settings = producer, questions, image_store, settings

    async def step(self, index: int) -> Step:
        """Explore, give credit, update, sync. The images of the step stay stored until the next one begins."""
        clock = _Clock()
        self._images.retain(())
        experience = await self.explore(index)
        clock.lap("rollout_s")
        credits, samples = self.give_credit(experience)
        update = self.update(samples, index=index)
        clock.lap("update_s")
        self.sync()
        clock.lap("sync_s")
        metrics = {**experience_metrics(experience), **update, **clock.times()}
        return Step(index, experience, credits, samples, metrics)

    async def explore(self, index: int) -> Experience:
        """Rollouts of the step's questions and the continuations the algorithm asks for."""
        size, seed = self._settings.num_questions, derive_seed("step", self._settings.seed, index)
        questions = self._questions.take(index * size, size)
        rollouts = await self._producer.run_rollouts(questions, num_rollouts=self._algorithm.num_rollouts, seed=seed)
        groups = group_rollouts(questions, rollouts)
        scores = rollout_scores(rollouts)
        plan = self._algorithm.plan(scores)
        by_id = {rollout.rollout_id: rollout for rollout in rollouts}
        prefixes = [cut_prefix(by_id[source.rollout_id], confidence=source.confidence) for source in plan.sources]
        continuations = await self._producer.resample(
            prefixes, questions=questions, num_continuations=plan.num_continuations, seed=seed
        )
        return Experience(groups, scores, plan, continuations, resample_scores(continuations))

    def give_credit(self, experience: Experience) -> tuple[tuple[Credit, ...], tuple[TrainingSample, ...]]:
        """Exactly one advantage per row, and the rows as samples."""
        credits = self._algorithm.credit(experience.scores, experience.plan, experience.resamples)
        return credits, build_samples(experience.rows, credits, temperature=self._settings.temperature)

    def update(self, samples: Sequence[TrainingSample], *, index: int) -> dict[str, float]:
        """The step's optimizer steps, each on the rows of other questions.

        At the first one old and current policy are the same, so only the rows of the later ones are scored beforehand.
        """
        batches = self._minibatches(samples, index=index)
        later = [sample for batch in batches[1:] for sample in batch.samples]
        old = dict(zip((sample.rollout_id for sample in later), self._actor.logprobs(later), strict=True))
        results = []
        for number, batch in enumerate(batches):
            old_logprobs = [old[sample.rollout_id] for sample in batch.samples] if number else None
            lr = self.learning_rate(index * len(batches) + number)
            results.append(self._actor.update(batch, loss=self._loss, lr=lr, old_logprobs=old_logprobs))
        return minibatch_metrics([result for result in results if "update/loss" in result])

    def _minibatches(self, samples: Sequence[TrainingSample], *, index: int) -> list[TrainBatch]:
        """Cuts by question, in an order drawn from the seed, so that rows which share a prompt stay together.

        Without a KL term rows of advantage 0 have no gradient: they are counted but not computed.
        """
        rows: dict[str, list[TrainingSample]] = {}
        for sample in samples:
            rows.setdefault(sample.question_id, []).append(sample)
        questions = sorted(rows)
        random.Random(derive_seed("minibatches", self._settings.seed, index)).shuffle(questions)
        count = self._settings.num_minibatches
        planned = self._settings.num_questions * self._algorithm.num_rollouts // count
        batches = []
        for start in range(count):
            part = tuple(sample for question in questions[start::count] for sample in rows[question])
            batch = TrainBatch(part, num_planned_rollouts=planned)
            batches.append(batch if self._loss.needs_reference else drop_without_advantage(batch))
        return batches

    def learning_rate(self, num_done: int) -> float:
        """Constant after a linear warm-up; ``num_done``: optimizer steps taken so far."""
        return self._settings.lr * min(1.0, (num_done + 1) / max(1, self._settings.warmup_steps))

    def sync(self) -> None:
        """Brings the actor's weights to the engine; from here on it samples the new policy."""
        self._engine.load_weights(self._actor.hf_tensors(), policy_version=self._actor.policy_version)


def experience_metrics(experience: Experience) -> dict[str, float | None]:
    """Rates and costs of what was sampled, under the names of metrics.jsonl."""
    rates = asdict(rollout_metrics(experience.scores, resamples=experience.resamples))
    cost = rollout_cost(experience.rows)
    sampled = float(sum(num_sampled_tokens(rollout) for rollout in experience.rows))
    costs = {"tokens": sampled, "turns": cost.turns, "truncated": cost.truncated}
    return {f"rollout/{name}": value for name, value in {**rates, **costs}.items()}


def minibatch_metrics(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a step from those of its optimizer steps: counts add up, maxima stay maxima, the rest is averaged."""
    names = dict.fromkeys(name for result in results for name in result)
    combined = {}
    for name in names:
        values = [result[name] for result in results if name in result]
        if name.rpartition("/")[2].startswith("num_"):
            combined[name] = sum(values)
        else:
            combined[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return combined


class _Clock:
    """Wall seconds of consecutive stages."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    def times(self) -> dict[str, float]:
        return {f"time/{name}": value for name, value in self._laps.items()} | {
            "time/step_s": time.perf_counter() - self._start
        }
