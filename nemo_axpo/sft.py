"""``nemo-axpo sft``: the supervised warm start, and a measurement of where it landed."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

from nemo_axpo import assembly
from nemo_axpo.config.schema import Config
from nemo_axpo.eval.evaluate import evaluate
from nemo_axpo.losses.supervised_loss import SupervisedLoss
from nemo_axpo.metrics_log import MetricsLog
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.rollouts.seeds import derive_seed
from nemo_axpo.run_directory import RunDirectory, open_run_directory
from nemo_axpo.train import metrics_sinks, peak_memory_gib
from nemo_axpo.types import TrainBatch
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer
from nemo_axpo.world.warm_start import WarmStartSamples

CHECKPOINT, MEASURED = "hf", "warm_start.json"
"""Written in the run directory: the policy, and the rates it starts reinforcement learning with."""


def run_sft(config: Config) -> Path:
    """Trains the warm start in ``config.output_dir``; returns the directory of the Hugging Face checkpoint.

    Without ``model.path`` it starts from the tiny model with random weights.
    """
    with open_run_directory(config) as run, ProgressDisplay() as progress:
        return asyncio.run(_WarmStart(config, run=run, progress=progress).run())


class _WarmStart:
    def __init__(self, config: Config, *, run: RunDirectory, progress: ProgressDisplay) -> None:
        self._config, self._run, self._progress = config, run, progress
        checkpoint = config.model.path or _random_checkpoint(run.path / "random_weights", seed=config.seed)
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
        with MetricsLog(self._run.metrics_path, sinks=metrics_sinks(self._config, run=self._run, last_step=0)) as log:
            await self._train(log)
        path = self._actor.save_hf(self._run.path / CHECKPOINT)
        if self._config.eval.window_questions:
            rates = await self._measure()
            (self._run.path / MEASURED).write_text(json.dumps(rates, indent=1) + "\n")
        return path

    async def _train(self, log: MetricsLog) -> None:
        section, name = self._config.sft, self._run.path.name
        self._progress.start(name, total=section.num_steps)
        for index in range(section.num_steps):
            samples = await self._samples.take(index, batch_size=section.batch_size)
            batch = TrainBatch(samples, num_planned_rollouts=len(samples))
            metrics = self._actor.update(batch, loss=SupervisedLoss(), lr=learning_rate(self._config, index))
            self._bench.images.retain(())
            metrics["memory/peak_gib"] = peak_memory_gib()
            log.log(index + 1, metrics)
            self._progress.update(name, step=index + 1, metrics=metrics)

    async def _measure(self) -> dict[str, Any]:
        """Rates of the warm start in groups of N, as reinforcement learning will first see them."""
        config = self._config
        engine = assembly.build_engine(config, bench=self._bench)
        engine.load_weights(self._actor.hf_tensors(), policy_version=0)
        producer = assembly.build_producer(
            config, bench=self._bench, engine=engine, temperature=config.rollout.temperature
        )
        seed = derive_seed("window", config.seed)
        stream = assembly.build_questions(config, stream="window", seed=config.seed, images=self._bench.images)
        questions = stream.take(0, config.eval.window_questions)
        self._progress.message(f"measuring the warm start on {len(questions)} questions")
        result = await evaluate(
            producer,
            questions,
            num_rollouts=config.algorithm.num_rollouts,
            seed=seed,
            k=min(4, config.algorithm.num_rollouts),
        )
        await engine.close()
        return result.metrics()


def learning_rate(config: Config, index: int) -> float:
    """Linear warm-up, then a cosine from ``sft.lr`` to ``sft.lr · min_lr_ratio``."""
    section = config.sft
    warm = min(1.0, (index + 1) / max(1, section.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * index / section.num_steps))
    return section.lr * warm * (section.min_lr_ratio + (1 - section.min_lr_ratio) * cosine)


def _random_checkpoint(path: Path, *, seed: int) -> Path:
    return save_tiny_checkpoint(path, tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=seed)
