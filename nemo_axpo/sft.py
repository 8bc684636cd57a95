"""``nemo-axpo sft``: supervised training on trajectories, or on the warm start of the embedded world.

Both are the same run on another source of rows. The warm start, from which the quickstart begins, is measured at its end;
what trajectories taught is measured by ``nemo-axpo eval``.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nemo_axpo import assembly
from nemo_axpo.actors.random_states import random_states, set_random_states
from nemo_axpo.assembly import Workbench
from nemo_axpo.config.schema import Config
from nemo_axpo.data.minibatches import RowInfo, assign_rows, row_infos
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.eval.evaluate import EvalResult, evaluate
from nemo_axpo.job import join_run, memory_metrics, open_metrics_log, save_policy, wait_for_all
from nemo_axpo.losses.supervised_loss import SupervisedLoss
from nemo_axpo.metrics_log import MetricsLog
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.rollouts.seeds import derive_seed
from nemo_axpo.run_checkpoints import checkpoint_store
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.stopping import StopRequest, clear_mark, listening, mark_stopped, seconds_of
from nemo_axpo.types import TrainBatch, TrainingSample
from nemo_axpo.world.questions import SOURCE
from nemo_axpo.world.tiny_policy import tiny_policy
from nemo_axpo.world.warm_start import WarmStartSamples

CHECKPOINT, MEASURED = "hf", "warm_start.json"
"""Written in the run directory: the policy, and the rates it starts reinforcement learning with."""


class SampleSource(Protocol):
    """Rows to imitate."""

    async def take(self, step: int, *, batch_size: int) -> Sequence[TrainingSample]:
        """The rows of one step of the whole job, the same on every rank."""

    def load_images(self, samples: Sequence[TrainingSample]) -> None:
        """Puts the pictures of these rows into the image store."""


def run_sft(config: Config, *, resume: bool = False) -> Path | None:
    """Trains in ``config.output_dir``; returns the directory of the Hugging Face checkpoint, None where it was stopped.

    Every rank of a job calls it. Without ``model.path`` it starts from the tiny model with random weights. ``resume``:
    from the last checkpoint (``sft.checkpoint_every``), from the start where there is none.
    """
    with listening(StopRequest(seconds_of(config.job.max_time))) as stop:
        replicas = assembly.build_replicas(config)
        with join_run(config, replicas=replicas, resume=resume) as (run, progress):
            supervised = _SupervisedRun(config, run=run, progress=progress, replicas=replicas, stop=stop)
            return asyncio.run(supervised.run(resume=resume))


class _SupervisedRun:
    def __init__(
        self, config: Config, *, run: RunDirectory, progress: ProgressDisplay, replicas: Replicas, stop: StopRequest
    ) -> None:
        self._stop = stop
        self._config, self._run, self._progress, self._replicas = config, run, progress, replicas
        checkpoint = config.model.path or self._random_checkpoint()
        self._bench = bench = assembly.build_workbench(config, checkpoint=checkpoint)
        self._samples, self._num_steps = _sample_source(config, bench=bench)
        optimizer = assembly.warm_start_optimizer(config)
        self._actor = assembly.build_actor(
            config, bench=bench, optimizer=optimizer, keep_reference=False, seed=config.seed
        )
        self._row_cost = assembly.build_row_cost(config, bench=bench)
        self._checkpoints = checkpoint_store(config, run=run)

    async def run(self, *, resume: bool) -> Path | None:
        """The rest of the steps, then the policy; a run that is asked to stop leaves a checkpoint instead."""
        done = self._restore() if resume else 0
        if self._replicas.is_main:
            self._run.forget_after(done)
            clear_mark(self._run)
        with open_metrics_log(self._config, run=self._run, replicas=self._replicas, last_step=done) as log:
            is_stopped = await self._train(done, log=log)
        if is_stopped:
            return None
        path = save_policy(self._actor, self._run.path / CHECKPOINT, replicas=self._replicas)
        if self._config.eval.window_questions and not self._config.sft.trajectories:
            rates = await self._measure()
            if self._replicas.is_main:
                (self._run.path / MEASURED).write_text(json.dumps(rates, indent=1) + "\n")
        return path

    def _random_checkpoint(self) -> Path:
        """The tiny model with random weights, written by one rank and read by all."""
        if self._replicas.is_main:
            tiny_policy(self._run.path, seed=self._config.seed)
        wait_for_all(self._replicas)
        return tiny_policy(self._run.path, seed=self._config.seed)

    async def _train(self, done: int, *, log: MetricsLog | None) -> bool:
        """Whether the run stopped before its last step."""
        name, num_steps = self._run.path.name, self._num_steps
        every = self._config.sft.checkpoint_every
        self._progress.start(name, total=num_steps, done=done)
        reason: str | None = None
        self._stop.begin_steps()
        for index in range(done, num_steps):
            self._checkpoints.finish(wait=False)
            batch = await self._batch(index)
            lr = learning_rate(self._config, index, num_steps=num_steps)
            metrics = self._actor.update(batch, loss=SupervisedLoss(), lr=lr)
            self._bench.images.retain(())
            metrics |= memory_metrics(self._replicas)
            if log:
                log.log(index + 1, metrics)
            self._progress.update(name, step=index + 1, metrics=metrics)
            is_last = index + 1 == num_steps
            reason = None if is_last else self._stop.after_step(self._replicas)
            if reason or (not is_last and every and (index + 1) % every == 0):
                self._save(index + 1)
            if reason:
                break
        self._checkpoints.finish()
        if reason and self._replicas.is_main:
            mark_stopped(self._run, step=index + 1, reason=reason)
            self._progress.message(f"stopped after step {index + 1} ({reason}); go on with --resume")
        return reason is not None

    async def _batch(self, index: int) -> TrainBatch:
        """This replica's share of a step, in tokens about as much as every other's."""
        samples = await self._samples.take(index, batch_size=self._config.sft.batch_size)
        rows: Sequence[RowInfo] = row_infos(samples, cost=self._row_cost) if self._replicas.count > 1 else ()
        replica_of = assign_rows(rows, num_replicas=self._replicas.count) if rows else {}
        own = tuple(row for row in samples if replica_of.get(row.rollout_id, 0) == self._replicas.index)
        self._samples.load_images(own)
        return TrainBatch(own, num_planned_rollouts=len(samples))

    def _save(self, number: int) -> None:
        self._checkpoints.save(
            number,
            tensors=self._actor.sharded_state(),
            state={"actor": self._actor.state_values()},
            random_states=random_states(),
        )

    def _restore(self) -> int:
        """Loads the newest checkpoint; the number of finished steps, 0 where there is none."""
        if not self._checkpoints.steps():
            return 0
        checkpoint = self._checkpoints.read()
        tensors = checkpoint.load_tensors(self._actor.sharded_state(is_loading=True))
        self._actor.load_state(tensors, checkpoint.state["actor"])
        if states := checkpoint.random_states():
            set_random_states(states)
        return checkpoint.step

    async def _measure(self) -> dict[str, Any]:
        """Rates of the warm start in groups of N, as reinforcement learning will first see them."""
        engine = None
        if self._replicas.is_leader:
            engine = assembly.build_engine(self._config, bench=self._bench, replicas=self._replicas)
        try:
            result = await self._evaluate(engine)
        finally:
            await self._bench.verifiers.close()
            if engine is not None:
                await engine.close()
        return result.metrics()

    async def _evaluate(self, engine: Engine | None) -> EvalResult:
        config, replicas = self._config, self._replicas
        assembly.build_weight_sync(config, actor=self._actor, engine=engine, replicas=replicas).push()
        producer = engine and assembly.build_producer(
            config, bench=self._bench, engine=engine, temperature=config.rollout.temperature
        )
        stream = assembly.build_questions(config, stream="window", seed=config.seed, images=self._bench.images)
        questions = stream.take(0, config.eval.window_questions)
        self._progress.message(f"measuring the warm start on {len(questions)} questions")
        return await evaluate(
            producer,
            questions,
            num_rollouts=config.algorithm.num_rollouts,
            seed=derive_seed("window", config.seed),
            k=min(4, config.algorithm.num_rollouts),
            replicas=replicas,
        )


def _sample_source(config: Config, *, bench: Workbench) -> tuple[SampleSource, int]:
    """Trajectories where the config names some, else the warm start of the embedded world; and the steps of the run."""
    section = config.sft
    if section.trajectories:
        from nemo_axpo.data.trajectory_samples import TrajectorySamples  # loads the package datasets, a second

        rows = TrajectorySamples(
            section.trajectories,
            images=bench.images,
            tokenizer=bench.renderer.tokenizer,
            image_processor=bench.image_processor,
            max_row_tokens=section.max_row_tokens,
            seed=config.seed,
            cache_dir=config.data.cache_dir,
        )
        return rows, math.ceil(len(rows) * section.num_epochs / section.batch_size)
    if config.data.name != SOURCE:
        rule = "sft needs sft.trajectories, or the warm start of the embedded world (data=world)"
        cure = "give the directory that `nemo-axpo distill` wrote: 'sft.trajectories=[outputs/distill]'"
        raise ConfigError(rule_message(rule, got=f"none, data.name={config.data.name}", cure=cure))
    lessons = WarmStartSamples(
        assembly.build_questions(config, stream="warm_start", seed=config.seed, images=bench.images),
        renderer=bench.renderer,
        tools=bench.tools,
        image_store=bench.images,
        tool_rate=config.world.tool_rate,
        aim_rate=config.world.aim_rate,
        seed=config.seed,
    )
    return lessons, section.num_steps


def learning_rate(config: Config, index: int, *, num_steps: int | None = None) -> float:
    """Linear warm-up, then a cosine from ``sft.lr`` to ``sft.lr · min_lr_ratio`` over ``num_steps`` (the section's)."""
    section = config.sft
    num_steps = section.num_steps if num_steps is None else num_steps
    num_warm = section.warmup_steps if section.warmup_share is None else round(section.warmup_share * num_steps)
    warm = min(1.0, (index + 1) / max(1, num_warm))
    cosine = 0.5 * (1 + math.cos(math.pi * index / num_steps))
    return section.lr * warm * (section.min_lr_ratio + (1 - section.min_lr_ratio) * cosine)
