"""``nemo-axpo sft``: the supervised warm start, and a measurement of where it landed."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

from nemo_axpo import assembly
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.eval.evaluate import EvalResult, evaluate
from nemo_axpo.job import join_run, open_metrics_log, peak_memory_gib, save_policy, wait_for_all
from nemo_axpo.losses.supervised_loss import SupervisedLoss
from nemo_axpo.metrics_log import MetricsLog
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.rollouts.seeds import derive_seed
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.types import TrainBatch
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer
from nemo_axpo.world.warm_start import WarmStartSamples

CHECKPOINT, MEASURED = "hf", "warm_start.json"
"""Written in the run directory: the policy, and the rates it starts reinforcement learning with."""


def run_sft(config: Config) -> Path:
    """Trains the warm start in ``config.output_dir``; returns the directory of the Hugging Face checkpoint.

    Every rank of a job calls it. Without ``model.path`` it starts from the tiny model with random weights.
    """
    replicas = assembly.build_replicas(config)
    with join_run(config, replicas=replicas) as (run, progress):
        return asyncio.run(_WarmStart(config, run=run, progress=progress, replicas=replicas).run())


class _WarmStart:
    def __init__(self, config: Config, *, run: RunDirectory, progress: ProgressDisplay, replicas: Replicas) -> None:
        self._config, self._run, self._progress, self._replicas = config, run, progress, replicas
        checkpoint = config.model.path or self._random_checkpoint()
        self._bench = bench = assembly.build_workbench(config, checkpoint=checkpoint)
        optimizer = assembly.warm_start_optimizer(config)
        self._actor = assembly.build_actor(
            config, bench=bench, optimizer=optimizer, keep_reference=False, seed=config.seed
        )
        self._samples = WarmStartSamples(
            assembly.build_questions(config, stream="warm_start", seed=config.seed, images=bench.images),
            renderer=bench.renderer,
            tools=bench.tools,
            image_store=bench.images,
            tool_rate=config.world.tool_rate,
            aim_rate=config.world.aim_rate,
            seed=config.seed,
        )

    async def run(self) -> Path:
        with open_metrics_log(self._config, run=self._run, replicas=self._replicas) as log:
            await self._train(log)
        path = save_policy(self._actor, self._run.path / CHECKPOINT, replicas=self._replicas)
        if self._config.eval.window_questions:
            rates = await self._measure()
            if self._replicas.is_main:
                (self._run.path / MEASURED).write_text(json.dumps(rates, indent=1) + "\n")
        return path

    def _random_checkpoint(self) -> Path:
        """The tiny model with random weights, written by one rank and read by all."""
        path = self._run.path / "random_weights"
        if self._replicas.is_main:
            save_tiny_checkpoint(path, tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=self._config.seed)
        wait_for_all(self._replicas)
        return path

    async def _train(self, log: MetricsLog | None) -> None:
        section, name = self._config.sft, self._run.path.name
        self._progress.start(name, total=section.num_steps)
        for index in range(section.num_steps):
            samples = await self._samples.take(index, batch_size=section.batch_size)
            own = samples[self._replicas.index :: self._replicas.count]
            batch = TrainBatch(own, num_planned_rollouts=len(samples))
            metrics = self._actor.update(batch, loss=SupervisedLoss(), lr=learning_rate(self._config, index))
            self._bench.images.retain(())
            metrics["memory/peak_gib"] = peak_memory_gib(self._replicas)
            if log:
                log.log(index + 1, metrics)
            self._progress.update(name, step=index + 1, metrics=metrics)

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


def learning_rate(config: Config, index: int) -> float:
    """Linear warm-up, then a cosine from ``sft.lr`` to ``sft.lr · min_lr_ratio``."""
    section = config.sft
    warm = min(1.0, (index + 1) / max(1, section.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * index / section.num_steps))
    return section.lr * warm * (section.min_lr_ratio + (1 - section.min_lr_ratio) * cosine)
