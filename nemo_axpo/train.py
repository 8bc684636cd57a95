"""``nemo-axpo train``: builds the parts, runs the loop, and keeps everything a resumed run needs."""

from __future__ import annotations

import asyncio
from typing import Any

from nemo_axpo import assembly
from nemo_axpo.actors.random_states import random_states, set_random_states
from nemo_axpo.canaries.checks import require
from nemo_axpo.canaries.proof import SyncProof
from nemo_axpo.canaries.rewards import verifier_checks
from nemo_axpo.canaries.run import run_canaries
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import OneProcess, Replicas
from nemo_axpo.eval.evaluate import EvalResult
from nemo_axpo.eval.held_out import evaluate_held_out
from nemo_axpo.job import join_run, open_journal, open_metrics_log, peak_memory_gib, save_policy
from nemo_axpo.journal import Journal
from nemo_axpo.loop import LoopSettings, Step, TrainingLoop
from nemo_axpo.metrics_log import MetricsLog
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.report.recorder import record_trees
from nemo_axpo.report.tree_records import choose_groups, tree_record
from nemo_axpo.rewards.base import require_verifiers
from nemo_axpo.run_directory import RunDirectory

_ONE_PROCESS = OneProcess()

MAX_RECORDED_GROUPS = 4
"""Trees written at a recorded step: enough to browse, small on disk."""


def run_training(config: Config, *, resume: bool = False) -> None:
    """Trains ``config.model.path`` by reinforcement learning in ``config.output_dir``; every rank of a job calls it.

    Raises ValueError (one of its kinds in ``nemo_axpo.errors``) for anything the user can cure.
    """
    replicas = assembly.build_replicas(config)
    with join_run(config, replicas=replicas, resume=resume) as (run, progress):
        trainer = Trainer(config, run=run, progress=progress, replicas=replicas)
        asyncio.run(trainer.run(resume=resume))


class Trainer:
    """The parts of one run, and the order in which steps, evaluations, records and checkpoints happen."""

    def __init__(
        self, config: Config, *, run: RunDirectory, progress: ProgressDisplay, replicas: Replicas = _ONE_PROCESS
    ) -> None:
        self._config, self._run, self._progress, self._replicas = config, run, progress, replicas
        self._bench = bench = assembly.build_workbench(config, checkpoint=config.model.path)
        self._checkpoints = CheckpointStore(
            run.checkpoints_path,
            keep=config.train.keep_checkpoints,
            is_async=config.train.checkpoint_async,
            timeout_s=60 * config.job.timeout_min,
        )
        loss = assembly.build_loss(config)
        self._actor = assembly.build_actor(
            config,
            bench=bench,
            optimizer=assembly.policy_optimizer(config),
            keep_reference=loss.needs_reference,
            seed=config.seed,
        )
        self._engine = assembly.build_engine(config, bench=bench, replicas=replicas) if replicas.is_leader else None
        self._proof = SyncProof(config, bench=bench, actor=self._actor, engine=self._engine, replicas=replicas)
        self._loop = TrainingLoop(
            algorithm=assembly.build_algorithm(config),
            loss=loss,
            actor=self._actor,
            engine=self._engine,
            producer=self._engine
            and assembly.build_producer(
                config, bench=bench, engine=self._engine, temperature=config.rollout.temperature
            ),
            questions=assembly.build_questions(config, stream="train", seed=config.seed, images=bench.images),
            image_store=bench.images,
            settings=LoopSettings(
                seed=config.seed,
                num_questions=config.data.num_questions_per_step,
                temperature=config.rollout.temperature,
                num_minibatches=config.actor.num_minibatches,
                warmup_steps=config.optimizer.warmup_steps,
                lr=config.optimizer.lr,
            ),
            row_cost=assembly.build_row_cost(config, bench=bench),
            replicas=replicas,
            weight_sync=assembly.build_weight_sync(
                config, actor=self._actor, engine=self._engine, replicas=replicas, prove=self._proof
            ),
        )

    async def run(self, *, resume: bool) -> None:
        """Steps ``done + 1`` to ``train.num_steps``, then the last evaluation and the exported policy."""
        done = self._restore() if resume else 0
        if self._replicas.is_main:
            self._run.forget_after(done)
        self._loop.sync()
        try:
            await self._check_verifiers()
            await self._check_engine()
            if done == 0:
                await self._write_evaluation("initial")
            with (
                open_metrics_log(self._config, run=self._run, replicas=self._replicas, last_step=done) as log,
                open_journal(self._run, replicas=self._replicas, last_step=done) as journal,
            ):
                await self._steps(done, log=log, journal=journal)
            await self._write_evaluation("final")
            save_policy(self._actor, self._run.path / "hf", replicas=self._replicas)
        finally:
            await self._bench.verifiers.close()
            if self._engine is not None:
                await self._engine.close()

    async def _steps(self, done: int, *, log: MetricsLog | None, journal: Journal | None) -> None:
        train, num_questions = self._config.train, self._config.data.num_questions_per_step
        name = self._run.path.name
        self._progress.start(name, total=train.num_steps, done=done)
        for index in range(done, train.num_steps):
            self._checkpoints.finish(wait=False)
            step, number = await self._loop.step(index), index + 1
            if train.record_every and number % train.record_every == 0 and self._replicas.is_main:
                self._record(step, number=number)
            metrics: dict[str, Any] = {**step.metrics, "memory/peak_gib": peak_memory_gib(self._replicas)}
            if train.eval_every and number % train.eval_every == 0 and number < train.num_steps:
                metrics |= {f"eval/{key}": value for key, value in (await self._evaluate()).metrics().items()}
            if log:
                log.log(number, metrics)
            if journal:
                names = [score.question_id for score in step.experience.scores]
                journal.trained(number, first=index * num_questions, count=num_questions, question_ids=names)
            self._progress.update(name, step=number, metrics=metrics)
            if number == train.num_steps or (train.checkpoint_every and number % train.checkpoint_every == 0):
                self._save(number)
        self._checkpoints.finish()

    async def _evaluate(self) -> EvalResult:
        """The held-out questions, the same in every run."""
        return await evaluate_held_out(self._config, bench=self._bench, engine=self._engine, replicas=self._replicas)

    async def _write_evaluation(self, phase: str) -> None:
        result = await self._evaluate()
        if self._replicas.is_main:
            self._run.write_evaluation(phase, result.as_dict())

    async def _check_verifiers(self) -> None:
        """A known-right answer must score 1 and a wrong one 0 before anything is trained on rewards."""
        require_verifiers(await verifier_checks(self._config, bench=self._bench, replicas=self._replicas))

    async def _check_engine(self) -> None:
        """CanaryError unless engine and trainer see the same pictures and sample the same distribution."""
        checks = await run_canaries(
            self._config, bench=self._bench, actor=self._actor, engine=self._engine, replicas=self._replicas
        )
        require(checks)
        if self._config.engine.sync.proof_every:
            await self._proof()  # of every server, and what the proof after the first update compares with

    def _record(self, step: Step, *, number: int) -> None:
        experience = step.experience
        groups = choose_groups(
            experience.groups, continuations=experience.continuations, max_groups=MAX_RECORDED_GROUPS
        )
        trees = [
            tree_record(
                group,
                step=number,
                plan=experience.plan,
                continuations=experience.continuations,
                samples=step.samples,
                decode=self._bench.renderer.decode,
            )
            for group in groups
        ]
        record_trees(
            self._run, trees, step=number, image_store=self._bench.images, image_processor=self._bench.image_processor
        )

    def _save(self, number: int) -> None:
        """Between two steps, where no question is in flight: the data position is what the next step asks first."""
        questions = {"next": number * self._config.data.num_questions_per_step, "in_flight": []}
        self._checkpoints.save(
            number,
            tensors=self._actor.sharded_state(),
            state={"actor": self._actor.state_values(), "questions": questions, "layout": self._layout()},
            random_states=random_states(),
        )

    def _restore(self) -> int:
        """Loads the newest checkpoint; the number of finished steps, 0 where there is none.

        Random states belong to a rank of a layout: under another one the generators stay as seeded.
        """
        if not self._checkpoints.steps():
            return 0
        checkpoint = self._checkpoints.read()
        tensors = checkpoint.load_tensors(self._actor.sharded_state(is_loading=True))
        self._actor.load_state(tensors, checkpoint.state["actor"])
        states = checkpoint.random_states()
        if states and checkpoint.state["layout"] == self._layout():
            set_random_states(states)
        return checkpoint.step

    def _layout(self) -> dict[str, int]:
        actor = self._config.actor
        sizes = {"tensor_parallel": actor.tensor_parallel, "pipeline_parallel": actor.pipeline_parallel}
        return sizes | {"replicas": self._replicas.count}
