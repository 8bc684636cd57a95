"""``nemo-axpo train``: builds the parts, runs the loop, and keeps everything a resumed run needs."""

from __future__ import annotations

import asyncio
from typing import Any

from nemo_axpo import assembly
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import OneProcess, Replicas
from nemo_axpo.eval.evaluate import EvalResult
from nemo_axpo.eval.held_out import evaluate_held_out
from nemo_axpo.job import join_run, memory_metrics, open_journal, open_metrics_log, save_policy
from nemo_axpo.journal import Journal
from nemo_axpo.metrics_log import MetricsLog
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.run_checkpoints import RunCheckpoints
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.step_records import journal_step, record_step
from nemo_axpo.stopping import StopRequest, clear_mark, listening, mark_stopped, seconds_of
from nemo_axpo.training_parts import build_training_parts

_ONE_PROCESS = OneProcess()


def run_training(config: Config, *, resume: bool = False) -> None:
    """Trains ``config.model.path`` by reinforcement learning in ``config.output_dir``; every rank of a job calls it.

    Raises ValueError (one of its kinds in ``nemo_axpo.errors``) for anything the user can cure.
    """
    with listening(StopRequest(seconds_of(config.job.max_time))) as stop:
        _train(config, resume=resume, stop=stop)


def _train(config: Config, *, resume: bool, stop: StopRequest) -> None:
    replicas = assembly.build_replicas(config)
    with join_run(config, replicas=replicas, resume=resume) as (run, progress):
        trainer = Trainer(config, run=run, progress=progress, replicas=replicas, stop=stop)
        asyncio.run(trainer.run(resume=resume))


class Trainer:
    """The parts of one run, and the order in which steps, evaluations, records and checkpoints happen."""

    def __init__(
        self,
        config: Config,
        *,
        run: RunDirectory,
        progress: ProgressDisplay,
        replicas: Replicas = _ONE_PROCESS,
        stop: StopRequest | None = None,
    ) -> None:
        self._stop = stop or StopRequest()
        self._config, self._run, self._progress, self._replicas = config, run, progress, replicas
        self._parts = parts = build_training_parts(config, replicas=replicas)
        self._bench, self._actor, self._engine, self._loop = parts.bench, parts.actor, parts.engine, parts.loop
        self._checkpoints = RunCheckpoints(config, run=run, actor=parts.actor, replicas=replicas)

    async def run(self, *, resume: bool) -> None:
        """Steps ``done + 1`` to ``train.num_steps``, then the last evaluation and the exported policy.

        A run that is asked to stop leaves a checkpoint and ``stopped.json`` instead of the last two.
        """
        done = self._checkpoints.restore() if resume else 0
        if self._replicas.is_main:
            self._run.forget_after(done)
            clear_mark(self._run)
        self._loop.sync()
        try:
            await self._parts.check()
            if done == 0:
                await self._write_evaluation("initial")
            with (
                open_metrics_log(self._config, run=self._run, replicas=self._replicas, last_step=done) as log,
                open_journal(self._run, replicas=self._replicas, last_step=done) as journal,
            ):
                is_stopped = await self._steps(done, log=log, journal=journal)
            if is_stopped:
                return
            await self._write_evaluation("final")
            save_policy(self._actor, self._run.path / "hf", replicas=self._replicas)
        finally:
            self._checkpoints.rescue()
            await self._parts.close()

    async def _steps(self, done: int, *, log: MetricsLog | None, journal: Journal | None) -> bool:
        """Whether the run stopped early: after its last step, too, whose evaluation may take as long as a step."""
        train, num_questions = self._config.train, self._config.data.num_questions_per_step
        name = self._run.path.name
        self._progress.start(name, total=train.num_steps, done=done)
        reason: str | None = None
        self._stop.begin_steps()
        for index in range(done, train.num_steps):
            self._checkpoints.finish(wait=False)
            step, number = await self._loop.step(index), index + 1
            if train.record_every and number % train.record_every == 0 and self._replicas.is_main:
                record_step(self._run, step.experience, step.samples, number=number, bench=self._bench)
            metrics: dict[str, Any] = {**step.metrics, **memory_metrics(self._replicas)}
            if train.eval_every and number % train.eval_every == 0 and number < train.num_steps:
                metrics |= {f"eval/{key}": value for key, value in (await self._evaluate()).metrics().items()}
            if log:
                log.log(number, metrics)
            if journal:
                journal_step(journal, step.experience, number=number, num_questions=num_questions)
            self._progress.update(name, step=number, metrics=metrics)
            reason = self._stop.after_step(self._replicas)
            if reason or number == train.num_steps or (train.checkpoint_every and number % train.checkpoint_every == 0):
                self._checkpoints.save(number)
            if reason:
                break
        self._checkpoints.finish()
        if reason and self._replicas.is_main:
            mark_stopped(self._run, step=number, reason=reason)
            self._progress.message(f"stopped after step {number} ({reason}); go on with --resume")
        return reason is not None

    async def _evaluate(self) -> EvalResult:
        """The held-out questions, the same in every run."""
        return await evaluate_held_out(self._config, bench=self._bench, engine=self._engine, replicas=self._replicas)

    async def _write_evaluation(self, phase: str) -> None:
        result = await self._evaluate()
        if self._replicas.is_main:
            self._run.write_evaluation(phase, result.as_dict())
