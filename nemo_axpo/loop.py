"""The training loop, a stage at a time. It sees protocols alone; ``train.py`` names the backends.

    explore      questions → N rollouts each → plan → K continuations of each selected thinking prefix
    give_credit  rewards → one advantage per row → training samples
    update       old and reference log-probs where the loss needs them → optimizer steps
    sync         the actor's weights → the engine, and the proof that they arrived

GRPO runs the same stages with a plan that is always empty. The data position is the step itself: step s asks questions
s·B to (s+1)·B of the stream, and every seed is derived from (run seed, step, question, rollout, branch, turn), so a
resumed run needs nothing but the step to ask and sample what an uninterrupted one would have.

Every rank of a job runs this loop. The leader of replica d of D samples questions d, d + D, … of the step; the scores of
all are gathered, so that every rank computes the same plan, credits and mini-batches; then rows move to the replica that
trains them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from nemo_axpo.algorithms.base import Algorithm
from nemo_axpo.algorithms.confidence import resample_scores, rollout_scores
from nemo_axpo.algorithms.metrics import rollout_metrics
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.minibatches import PlannedMinibatch, RowInfo, plan_minibatches, row_infos
from nemo_axpo.data.row_cost import RowCostModel
from nemo_axpo.data.samples import build_samples
from nemo_axpo.distributed.replicas import OneProcess, Replicas
from nemo_axpo.distributed.server_health import samples_on_servers, take_server_metrics
from nemo_axpo.engines.base import Engine
from nemo_axpo.rollouts.eager import EagerResampling
from nemo_axpo.rollouts.metrics import RowCosts, mean_costs, row_costs
from nemo_axpo.rollouts.producer import Producer, check_not_all_lost
from nemo_axpo.rollouts.seeds import derive_seed
from nemo_axpo.rollouts.tool_metrics import ToolUse, tool_metrics, tool_times, tool_uses
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
from nemo_axpo.weight_sync.sync import WeightSync

_ONE_PROCESS = OneProcess()


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
    """What one step sampled: the rows of this replica, the scalars of all replicas."""

    groups: tuple[RolloutGroup, ...]
    """Of this replica; none on ranks that do not sample."""
    scores: tuple[RolloutScore, ...]
    """Of the whole step, as everything below but ``continuations``."""
    plan: ResamplePlan
    continuations: tuple[Rollout, ...]
    """Of this replica: a prefix is continued where it was sampled, by the engine that still holds its cache."""
    resamples: tuple[ResampleScore, ...]
    costs: tuple[RowCosts, ...]
    tool_uses: tuple[ToolUse, ...] = ()

    @property
    def rows(self) -> tuple[Rollout, ...]:
        """Every row of this replica: ordinary rollouts, then continuations."""
        return tuple(rollout for group in self.groups for rollout in group.rollouts) + self.continuations


@dataclass(frozen=True)
class Step:
    """One finished step: what was sampled, what was trained, and what it measured."""

    index: int
    experience: Experience
    credits: tuple[Credit, ...]
    samples: tuple[TrainingSample, ...]
    """Of the rows sampled by this replica, wherever they are trained."""
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
        engine: Engine | None,
        producer: Producer | None,
        questions: QuestionSource,
        image_store: ImageStore,
        settings: LoopSettings,
        row_cost: RowCostModel,
        replicas: Replicas = _ONE_PROCESS,
        weight_sync: WeightSync | None = None,
    ) -> None:
        """``engine`` and ``producer``: None on ranks that do not sample. ``row_cost``: what balances the replicas.

        ``weight_sync`` is for the same actor, engine and replicas; None: without proofs.
        """
        assert (engine is not None) == (producer is not None) == replicas.is_leader, "leaders sample, and no other rank"
        self._algorithm, self._loss, self._actor, self._engine = algorithm, loss, actor, engine
        self._producer, self._questions, self._images, self._settings = producer, questions, image_store, settings
        self._row_cost, self._replicas = row_cost, replicas
        self._sync = weight_sync or WeightSync(actor, engine, replicas=replicas)

    async def step(self, index: int) -> Step:
        """Explore, give credit, update, sync. The images of the step stay stored until the next one begins."""
        clock = _Clock()
        self._images.retain(())
        self._replicas.take_num_bytes()  # what evaluations and the like sent since is not the step's
        experience = await self.explore(index)
        clock.lap("rollout_s")
        credits, samples = self.give_credit(experience)
        update = self.update(samples, index=index)
        clock.lap("update_s")
        sent = {f"sent/{name}_bytes": float(count) for name, count in self._replicas.take_num_bytes().items() if count}
        synced = await self._sync.after_update(index)
        clock.lap("sync_s")
        servers = take_server_metrics(self._engine, replicas=self._replicas)
        metrics = {**experience_metrics(experience), **update, **synced, **servers, **sent, **clock.times()}
        return Step(index, experience, credits, samples, metrics)

    async def explore(self, index: int) -> Experience:
        """Rollouts of the step's questions and the continuations the algorithm asks for."""
        questions = self._questions_of(index)
        sampling = self.sampling(questions, index=index)
        rollouts = await sampling.roll_out() if sampling else ()
        scores, plan = await self.agree(rollouts)
        continuations = await sampling.continue_sources(plan) if sampling else ()
        return self.experience(questions, rollouts, continuations, scores=scores, plan=plan)

    def sampling(self, questions: Sequence[Question], *, index: int) -> EagerResampling | None:
        """What samples ``questions``, of step ``index``, on this rank's engine; None on ranks that do not sample."""
        if self._producer is None:
            return None
        return EagerResampling(
            self._producer,
            questions,
            algorithm=self._algorithm,
            num_elsewhere=self._settings.num_questions - len(questions),
            seed=derive_seed("step", self._settings.seed, index),
        )

    async def agree(self, rollouts: Sequence[Rollout]) -> tuple[tuple[RolloutScore, ...], ResamplePlan]:
        """As :meth:`plan`; continuations that servers sample go on while other replicas are not there yet.

        Else they would run out of time in which nobody listened. An engine in this process stands still meanwhile: which
        requests share a batch, and so the last digits of their log-probs, must not hang on how fast another replica is.
        """
        if samples_on_servers(self._engine):
            return await asyncio.to_thread(self.plan, rollouts)
        return self.plan(rollouts)

    def plan(self, rollouts: Sequence[Rollout]) -> tuple[tuple[RolloutScore, ...], ResamplePlan]:
        """Scores of the whole step and what they make the algorithm resample; ``rollouts``: those sampled here."""
        scores = self._replicas.gather(rollout_scores(rollouts), kind=RolloutScore)
        return scores, self._algorithm.plan(scores)

    def experience(
        self,
        questions: Sequence[Question],
        rollouts: Sequence[Rollout],
        continuations: Sequence[Rollout],
        *,
        scores: tuple[RolloutScore, ...],
        plan: ResamplePlan,
    ) -> Experience:
        """The step as sampled. ``questions``, ``rollouts``, ``continuations``: of this rank.

        EngineError where every continuation of the whole step was lost.
        """
        continuations = tuple(continuations)
        resamples = self._replicas.gather(resample_scores(continuations), kind=ResampleScore)
        # Of the whole step, so that it does not depend on which replica holds how many of them.
        check_not_all_lost(resamples, num_jobs=len(plan.sources) * plan.num_continuations)
        costs = self._replicas.gather([row_costs(row) for row in (*rollouts, *continuations)], kind=RowCosts)
        uses = self._replicas.gather(tool_uses((*rollouts, *continuations)), kind=ToolUse)
        return Experience(group_rollouts(questions, rollouts), scores, plan, continuations, resamples, costs, uses)

    def _questions_of(self, index: int) -> Sequence[Question]:
        """The questions of step ``index`` that this rank samples."""
        if not self._replicas.is_leader:
            return ()
        size = self._settings.num_questions
        return self._questions.take(index * size, size)[self._replicas.index :: self._replicas.count]

    def give_credit(self, experience: Experience) -> tuple[tuple[Credit, ...], tuple[TrainingSample, ...]]:
        """Exactly one advantage per row of the step, and this replica's rows as samples."""
        credits = self._algorithm.credit(experience.scores, experience.plan, experience.resamples)
        return credits, build_samples(experience.rows, credits, temperature=self._settings.temperature)

    def update(self, samples: Sequence[TrainingSample], *, index: int) -> dict[str, float]:
        """The step's optimizer steps, each on the rows of other questions. ``samples``: the rows this replica sampled.

        At the first one old and current policy are the same, so only the rows of the later ones are scored beforehand.
        """
        planned, batches = self.minibatches(samples, index=index)
        later = [sample for batch in batches[1:] for sample in batch.samples]
        old = dict(zip((sample.rollout_id for sample in later), self._actor.logprobs(later), strict=True))
        results = []
        for number, batch in enumerate(batches):
            old_logprobs = [old[sample.rollout_id] for sample in batch.samples] if number else None
            lr = self.learning_rate(index * len(batches) + number)
            result = self._actor.update(batch, loss=self._loss, lr=lr, old_logprobs=old_logprobs)
            results.append({**result, "batch/imbalance": planned[number].imbalance})
        return minibatch_metrics([result for result in results if "update/loss" in result])

    def minibatches(
        self, samples: Sequence[TrainingSample], *, index: int
    ) -> tuple[list[PlannedMinibatch], list[TrainBatch]]:
        """Every mini-batch of step ``index``, and this replica's share of it; every rank calls it.

        Whole questions, so that rows which share a prompt stay together. Without a KL term rows of advantage 0 have no
        gradient: they are counted but not computed.
        """
        rows = self._replicas.gather(row_infos(samples, cost=self._row_cost), kind=RowInfo)
        planned = plan_minibatches(
            rows,
            num_minibatches=self._settings.num_minibatches,
            num_replicas=self._replicas.count,
            seed=derive_seed("minibatches", self._settings.seed, index),
            drops_without_advantage=not self._loss.needs_reference,
        )
        replica_of = {row: replica for minibatch in planned for row, replica in minibatch.replica_of.items()}
        moved = self._replicas.move(samples, replica_of=replica_of, image_store=self._images)
        by_id = {sample.rollout_id: sample for sample in moved}
        return planned, [self._batch(minibatch, samples=by_id) for minibatch in planned]

    def _batch(self, minibatch: PlannedMinibatch, *, samples: Mapping[str, TrainingSample]) -> TrainBatch:
        own = tuple(samples[rollout_id] for rollout_id in minibatch.rows_of(self._replicas.index))
        # What replicas count is added up: one of them speaks for the rows that nobody computes.
        num_dropped = minibatch.num_dropped_tokens if self._replicas.index == 0 else 0
        return TrainBatch(own, num_planned_rollouts=self.num_planned_rollouts, num_other_tokens=num_dropped)

    @property
    def num_planned_rollouts(self) -> int:
        """Ordinary rollouts of an optimizer step: B·N ÷ mini-batches."""
        return self._settings.num_questions * self._algorithm.num_rollouts // self._settings.num_minibatches

    def learning_rate(self, num_done: int) -> float:
        """Constant after a linear warm-up; ``num_done``: optimizer steps taken so far."""
        return self._settings.lr * min(1.0, (num_done + 1) / max(1, self._settings.warmup_steps))

    def sync(self) -> None:
        """Brings the actor's weights to the engine; from here on it samples the new policy."""
        self._sync.push()


def experience_metrics(experience: Experience) -> dict[str, float | None]:
    """Rates and costs of what was sampled, under the names of metrics.jsonl."""
    rates = asdict(rollout_metrics(experience.scores, resamples=experience.resamples))
    cost = mean_costs(experience.costs)
    sampled = float(sum(row.tokens for row in experience.costs))
    costs = {"tokens": sampled, "turns": cost.turns, "truncated": cost.truncated}
    named = {f"rollout/{name}": value for name, value in {**rates, **costs}.items()}
    return {**named, **tool_metrics(experience.tool_uses), **tool_times(experience.rows)}


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
