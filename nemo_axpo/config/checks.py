"""Checks across sections, made before any work: each problem as rule, value, cure.

What one section alone may hold is its own business (its ``problems``); here are values of several sections that do not
fit each other, the machine or the files they name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.precision import Fp8Settings, LayerSettings
from nemo_axpo.algorithms.base import get_algorithm
from nemo_axpo.config.schema import BenchmarksConfig, Config, RolloutConfig
from nemo_axpo.engines.names import SERVER_ENGINES
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.extras import has_extra
from nemo_axpo.importing.location import cure_of
from nemo_axpo.rewards.build import key_problems
from nemo_axpo.tools.build import check_options
from nemo_axpo.tools.search.build import search_key_problems, search_problems


def check_config(config: Config, *, world_size: int = 1) -> None:
    """ConfigError that lists every problem of ``config`` on a job of ``world_size`` ranks."""
    problems = [
        *config_problems(config, world_size=world_size),
        *config.engine.problems(num_replicas=max(1, world_size // config.actor.model_parallel)),
        *_vllm_problems(config, world_size=world_size),
        *_device_problems(config),
        *key_problems(config.rewards),
        *search_key_problems(config.tools),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def config_problems(config: Config, *, world_size: int) -> list[str]:
    """Every problem of ``config`` itself on ``world_size`` ranks; this machine is not asked."""
    return [
        *_algorithm_problems(config),
        *config.data.problems(),
        *_length_problems(config),
        *_patience_problems(config, section=config.rollout, name="rollout"),
        *_layout_problems(config, world_size=world_size),
        *config.actor.problems(),
        *_memory_problems(config),
        *_precision_problems(config),
        *check_options(config.tools),
        *config.rewards.problems(),
        *search_problems(config.tools),
    ]


def check_model_path(config: Config) -> None:
    """ConfigError unless ``model.path`` is an HF checkpoint directory: RL starts from a policy that can act."""
    path = config.model.path
    if path is None or not (Path(path) / "config.json").is_file():
        other = cure_of(Path(path)) if path else None
        cure = "run `nemo-axpo sft` first and give its checkpoint, or download a Qwen3-VL checkpoint"
        got, cure = (f"{path}, {other[0]}", other[1]) if other else (path, cure)
        rule = "model.path must be a Hugging Face checkpoint directory (with config.json)"
        raise ConfigError(rule_message(rule, got=got, cure=cure))


def check_benchmarks(config: Config) -> None:
    """ConfigError unless the engine can sample as ``benchmarks`` says."""
    problems = [*_benchmark_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _benchmark_problems(config: Config) -> Iterator[str]:
    section, engine = config.benchmarks, config.engine
    yield from _patience_problems(config, section=section, name="benchmarks")
    if section.max_row_tokens > engine.max_model_len:
        yield rule_message(
            "benchmarks.max_row_tokens must not exceed engine.max_model_len",
            got=f"{section.max_row_tokens} > {engine.max_model_len}",
            cure="raise the second (the paper's rows have 32,768 tokens), or lower the first",
        )
    if (section.max_new_tokens or 0) > section.max_row_tokens:
        yield rule_message(
            "benchmarks.max_new_tokens must not exceed benchmarks.max_row_tokens",
            got=f"{section.max_new_tokens} > {section.max_row_tokens}",
            cure="lower the first, or set it to null",
        )
    if engine.name == "trtllm" and section.presence_penalty:
        yield rule_message(
            "benchmarks.presence_penalty must be 0 for engine.name=trtllm: its servers penalise the prompt's tokens too",
            got=section.presence_penalty,
            cure="set it to 0, or use engine.name=vllm_server",
        )


def algorithm_arguments(config: Config) -> dict[str, object]:
    """Keyword arguments of the algorithm's constructor: its section and B."""
    return {"num_questions": config.data.num_questions_per_step, **config.algorithm.model_dump(exclude={"name"})}


def memory_arguments(config: Config) -> dict[str, object]:
    """Keyword arguments of ``MemorySettings``: the keys of the actor's section that it has too."""
    return {field.name: getattr(config.actor, field.name) for field in fields(MemorySettings)}


def layer_settings(config: Config) -> LayerSettings:
    """What the decoder is built of; ValueError for an FP8 recipe that excludes itself."""
    fp8 = config.actor.fp8
    return LayerSettings(config.actor.transformer_impl, Fp8Settings(**fp8.model_dump()) if fp8.recipe else None)


def _algorithm_problems(config: Config) -> Iterator[str]:
    """N, K, r and B that make no sense together; the algorithm itself is the judge."""
    try:
        get_algorithm(config.algorithm.name)(**algorithm_arguments(config))
    except ValueError as error:
        yield f"algorithm: {error}"
    num_questions = config.data.num_questions_per_step
    if config.actor.num_minibatches > num_questions:
        yield rule_message(
            "actor.num_minibatches must not exceed the questions of a step, which are never split over mini-batches",
            got=f"{config.actor.num_minibatches} > {num_questions}",
            cure="lower it, or raise data.num_questions_per_step",
        )


def _length_problems(config: Config) -> Iterator[str]:
    rollout, engine = config.rollout, config.engine
    if rollout.max_row_tokens > engine.max_model_len:
        yield rule_message(
            "rollout.max_row_tokens must not exceed engine.max_model_len",
            got=f"{rollout.max_row_tokens} > {engine.max_model_len}",
            cure="lower the first or raise the second",
        )
    if rollout.max_new_tokens >= rollout.max_row_tokens:
        yield rule_message(
            "rollout.max_new_tokens must leave room for the prompt in rollout.max_row_tokens",
            got=f"{rollout.max_new_tokens} >= {rollout.max_row_tokens}",
            cure="lower the first or raise the second",
        )
    if rollout.max_row_tokens > config.actor.micro_batch_tokens:
        yield rule_message(
            "actor.micro_batch_tokens must hold one row (rollout.max_row_tokens)",
            got=f"{config.actor.micro_batch_tokens} < {rollout.max_row_tokens}",
            cure="raise the first or lower the second",
        )


def _patience_problems(config: Config, *, section: RolloutConfig | BenchmarksConfig, name: str) -> Iterator[str]:
    """A request to a server that hangs must be given up, and its rollout be lost, before the rollout's time is over."""
    timeout_s, limit_s = config.engine.request_timeout_s, section.max_time_s
    if config.engine.name in SERVER_ENGINES and timeout_s >= limit_s:
        rule = f"engine.request_timeout_s must be below {name}.max_time_s, or a server that hangs makes rollouts wrong, not lost"
        yield rule_message(rule, got=f"{timeout_s:g} >= {limit_s:g}", cure="lower the first or raise the second")


def _layout_problems(config: Config, *, world_size: int) -> Iterator[str]:
    if config.job.world_size not in (None, world_size):
        rule = "the number of ranks must be job.num_nodes x job.gpus_per_node"
        cure = f"start {config.job.world_size} ranks, or set job.num_nodes=null"
        yield rule_message(rule, got=f"{world_size}", cure=cure)
    parallel = config.actor.model_parallel
    if world_size % parallel:
        yield rule_message(
            "the number of ranks must be a multiple of actor.tensor_parallel x actor.pipeline_parallel",
            got=f"{world_size} ranks, {config.actor.tensor_parallel} x {config.actor.pipeline_parallel}",
            cure=f"start {parallel} ranks (torchrun --nproc-per-node {parallel} -m nemo_axpo.cli train ...) or lower them",
        )


def _vllm_problems(config: Config, *, world_size: int) -> Iterator[str]:
    if config.engine.name == "vllm" and world_size > 1:
        rule = "engine.name=vllm samples in the process of a trainer of one rank: vLLM takes its process group"
        cure = "start vLLM servers and set engine.name=vllm_server (docs/engines.md)"
        yield rule_message(rule, got=f"{world_size} ranks", cure=cure)


def _memory_problems(config: Config) -> Iterator[str]:
    """The actor's memory settings; the record itself is the judge."""
    try:
        MemorySettings(**memory_arguments(config)).check_device(config.device)
    except ValueError as error:
        yield f"actor: {error}"


def _precision_problems(config: Config) -> Iterator[str]:
    """The decoder's layers and FP8; the record itself is the judge."""
    try:
        layer_settings(config).check(config.device, dtype=config.actor.dtype)
    except ValueError as error:
        yield f"actor: {error}"


def _device_problems(config: Config) -> Iterator[str]:
    if layer_settings(config).needs_transformer_engine and not has_extra("te"):
        rule = "actor.transformer_impl=transformer_engine and actor.fp8 need the package transformer_engine"
        cure = "pip install 'nemo_axpo[te]', or set transformer_impl=auto and fp8.recipe=null"
        yield rule_message(rule, got="it is not installed", cure=cure)
    if config.engine.name == "vllm" and not has_extra("vllm"):
        cure = "pip install 'nemo_axpo[vllm]', or set engine.name=hf"
        yield rule_message("engine.name=vllm needs the package vllm", got="it is not installed", cure=cure)
    if config.device == "cuda" and not _has_cuda():
        yield rule_message(
            "device=cuda needs a CUDA build of torch and a visible GPU",
            got="torch.cuda.is_available() is False",
            cure="choose device=cpu, or install one (launcher_scripts/setup_env.sh --device cuda)",
        )


def _has_cuda() -> bool:
    import torch  # Late: a config is checked within milliseconds where no GPU is asked for.

    return torch.cuda.is_available()
