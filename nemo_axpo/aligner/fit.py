"""Puts a run under NeMo-Aligner together and runs ``ReinforceTrainer.fit`` in it: what the entry script does after its config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from nemo_axpo.aligner import environment

environment.prepare()  # before NeMo-Aligner's modules are imported below

# isort: split
from nemo_aligner.data.nlp.builders import build_dataloader
from nemo_aligner.utils.batch_iterators import get_batch_iterator_cls
from nemo_aligner.utils.train_script_utils import CustomLoggerWrapper
from omegaconf import DictConfig, OmegaConf

from nemo_axpo import assembly
from nemo_axpo.aligner.actor_model import MegatronQwen3VLAXPOActorModel, Observer
from nemo_axpo.aligner.checkpoints import CheckpointCallback, trainer_state
from nemo_axpo.aligner.data import QuestionIndices, collate_questions
from nemo_axpo.aligner.optimizer import PolicyOptimizer, WarmupScheduler
from nemo_axpo.aligner.reward_model import VerifierRewardModel
from nemo_axpo.aligner.run_log import RunLog
from nemo_axpo.aligner.stop_timer import StopTimer
from nemo_axpo.aligner.trainer import AXPOTrainer
from nemo_axpo.aligner.trainer_section import trainer_section
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.job import join_run, open_journal, open_metrics_log, save_policy
from nemo_axpo.journal import Journal
from nemo_axpo.loop import Experience
from nemo_axpo.metrics_log import MetricsLog
from nemo_axpo.run_checkpoints import RunCheckpoints
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.step_records import journal_step, record_step
from nemo_axpo.stopping import StopRequest, clear_mark, listening, mark_stopped, seconds_of
from nemo_axpo.training_parts import TrainingParts, build_training_parts
from nemo_axpo.types import TrainingSample


def run_training(config: Config, *, resume: bool = False) -> None:
    """Trains in ``config.output_dir`` under NeMo-Aligner; every rank of the job calls it.

    ValueError for anything the user can cure.
    """
    with listening(StopRequest(seconds_of(config.job.max_time))) as stop:
        replicas = assembly.build_replicas(config)
        section = OmegaConf.create(trainer_section(config, num_replicas=replicas.count))
        with join_run(config, replicas=replicas, resume=resume) as (run, progress):
            parts = build_training_parts(config, replicas=replicas)
            checkpoints = RunCheckpoints(config, run=run, actor=parts.actor, replicas=replicas)
            model, timer = MegatronQwen3VLAXPOActorModel(parts), StopTimer(stop, replicas=replicas)
            try:
                trainer = _train(
                    model, parts=parts, section=section, run=run, checkpoints=checkpoints, timer=timer, resume=resume
                )
            finally:
                checkpoints.rescue()
                model.close()
            if trainer.step < trainer.max_steps and replicas.is_main:
                mark_stopped(run, step=trainer.step, reason=timer.reason)
                progress.message(f"stopped after step {trainer.step} ({timer.reason}); go on with --resume")


def _train(
    model: MegatronQwen3VLAXPOActorModel,
    *,
    parts: TrainingParts,
    section: DictConfig,
    run: RunDirectory,
    checkpoints: RunCheckpoints,
    timer: StopTimer,
    resume: bool,
) -> AXPOTrainer:
    """The trainer after its last step: the config's, or the one after which ``timer`` stopped it."""
    config, replicas = parts.config, parts.replicas
    done = checkpoints.restore() if resume else 0
    if replicas.is_main:
        run.forget_after(done)
        clear_mark(run)
    with (
        open_metrics_log(config, run=run, replicas=replicas, last_step=done) as log,
        open_journal(run, replicas=replicas, last_step=done) as journal,
    ):
        model.observer = _observer(parts, run=run, journal=journal)
        trainer = _trainer(model, section=section, config=config, checkpoints=checkpoints, log=log, timer=timer)
        if done:
            trainer.load_state_dict(trainer_state(config, step=done))
        _fit(trainer, run=run, replicas=replicas)
    checkpoints.finish()
    if trainer.step >= trainer.max_steps:
        save_policy(parts.actor, run.path / "hf", replicas=replicas)
    return trainer


def _fit(trainer: AXPOTrainer, *, run: RunDirectory, replicas: Replicas) -> None:
    """Checks, evaluation before, ``fit``, evaluation after."""
    done = trainer.step
    trainer.model.prepare_for_inference()
    trainer.model.check()
    if not done:
        _evaluate(trainer)
        _write_evaluation(trainer, "initial", run=run, replicas=replicas)
    trainer.fit()
    if trainer.step < trainer.max_steps:
        return
    if not trainer.cfg.val_check_interval or done >= trainer.max_steps:  # else fit has, after its last step
        _evaluate(trainer)
    _write_evaluation(trainer, "final", run=run, replicas=replicas)


def _observer(parts: TrainingParts, *, run: RunDirectory, journal: Journal | None) -> Observer:
    """Trees and the journal, as the main loop writes them."""
    every, is_main = parts.config.train.record_every, parts.replicas.is_main
    num_questions = parts.config.data.num_questions_per_step

    def observe(experience: Experience, samples: Sequence[TrainingSample], number: int) -> None:
        if every and number % every == 0 and is_main:
            record_step(run, experience, samples, number=number, bench=parts.bench)
        if journal is not None:
            journal_step(journal, experience, number=number, num_questions=num_questions)

    return observe


def _evaluate(trainer: AXPOTrainer) -> None:
    """A validation outside of ``fit``."""
    trainer.run_validation()
    trainer.timer.consume_durations()


def _write_evaluation(trainer: AXPOTrainer, phase: str, *, run: RunDirectory, replicas: Replicas) -> None:
    """The last validation's rates."""
    if replicas.is_main:
        run.write_evaluation(phase, trainer.model.evaluation.as_dict())


def _trainer(
    model: MegatronQwen3VLAXPOActorModel,
    *,
    section: DictConfig,
    config: Config,
    checkpoints: RunCheckpoints,
    log: MetricsLog | None,
    timer: StopTimer,
) -> AXPOTrainer:
    optimizer, run_log = PolicyOptimizer(model), RunLog(log)
    num_questions = config.data.num_questions_per_step
    train = QuestionIndices(config.train.num_steps * num_questions)
    held_out = QuestionIndices(config.eval.num_questions, is_validation=True)
    return AXPOTrainer(
        cfg=section,
        model=model,
        optimizer=optimizer,
        scheduler=WarmupScheduler(optimizer, rate=model.loop.learning_rate),
        train_dataloader_builder=_loader(train, section.rollout_micro_batch_size, num_questions),
        val_dataloader_builder=_loader(held_out, section.val_rollout_micro_batch_size, config.eval.num_questions),
        collate_fn=collate_questions,
        rm=VerifierRewardModel(),
        batch_iterator_cls=get_batch_iterator_cls(section.get("batch_iterator", {})),
        logger=CustomLoggerWrapper([run_log]),
        ckpt_callback=CheckpointCallback(checkpoints, before=run_log.flush),
        run_timer=timer,
    )


def _loader(dataset: QuestionIndices, micro_batch: int, global_batch: int) -> Any:
    """Loaders in the order of the stream: its questions are fresh, and their index is the data position."""
    return partial(
        build_dataloader,
        cfg=OmegaConf.create({"model": {"data": {"num_workers": 0}}}),
        dataset=dataset,
        mbs=micro_batch,
        gbs=global_batch,
        collate_fn=collate_questions,
        load_gbs=False,
        use_random_sampler=False,
    )
