"""Checks across sections, made before any work: each problem as rule, value, cure.

What one field alone may hold is the schema's business; here are the values that do not fit each other, the machine or the
files they name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.precision import Fp8Settings, LayerSettings
from nemo_axpo.algorithms.base import get_algorithm
from nemo_axpo.config.schema import Config, DataConfig
from nemo_axpo.data.questions import FILES
from nemo_axpo.engines.names import SERVER_ENGINES, UNSHARED_SERVER_ENGINES
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.extras import has_extra
from nemo_axpo.rewards.build import key_problems, reward_problems
from nemo_axpo.tools.build import check_options
from nemo_axpo.tools.search.build import search_key_problems, search_problems


def check_config(config: Config, *, world_size: int = 1) -> None:
    """ConfigError that lists every problem of ``config`` on a job of ``world_size`` ranks."""
    problems = [
        *config_problems(config, world_size=world_size),
        *_server_problems(config, world_size=world_size),
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
        *_data_problems(config.data),
        *_length_problems(config),
        *_layout_problems(config, world_size=world_size),
        *_unsupported(config),
        *_memory_problems(config),
        *_precision_problems(config),
        *check_options(config.tools),
        *reward_problems(config.rewards),
        *search_problems(config.tools),
    ]


def check_model_path(config: Config) -> None:
    """ConfigError unless ``model.path`` is an HF checkpoint directory: RL starts from a policy that can act."""
    path = config.model.path
    if path is None or not (Path(path) / "config.json").is_file():
        raise ConfigError(
            rule_message(
                "model.path must be a Hugging Face checkpoint directory (with config.json)",
                got=path,
                cure="run `nemo-axpo sft` first and give its checkpoint, or download a Qwen3-VL checkpoint",
            )
        )


def check_benchmarks(config: Config) -> None:
    """ConfigError unless the engine can sample as ``benchmarks`` says."""
    problems = [*_benchmark_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _benchmark_problems(config: Config) -> Iterator[str]:
    section, engine = config.benchmarks, config.engine
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


def _data_problems(data: DataConfig) -> Iterator[str]:
    """Questions that lack their files; whether these can be read is seen when they are."""
    if data.name != FILES:
        return
    if not data.files:
        cure = "name them: data=files 'data.files=[{path: questions.jsonl}]' (docs/data.md)"
        yield rule_message("data.name=files needs data.files", got="none", cure=cure)
    if data.streaming and not data.eval_files:
        rule = "data.streaming needs data.eval_files: held-out questions of a stream are not known beforehand"
        yield rule_message(rule, got="none", cure="name some, or set data.streaming=false")
    if data.streaming and any(file.keep for file in data.files):
        cure = "set data.streaming=false"
        yield rule_message("data.files[].keep is for questions that are not streamed", got="streaming", cure=cure)


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


def _layout_problems(config: Config, *, world_size: int) -> Iterator[str]:
    if config.job.world_size not in (None, world_size):
        rule = "the number of ranks must be job.num_nodes x job.gpus_per_node"
        cure = f"start {config.job.world_size} ranks, or set job.num_nodes=null"
        yield rule_message(rule, got=f"{world_size}", cure=cure)
    parallel = math.prod((config.actor.tensor_parallel, config.actor.pipeline_parallel))
    if world_size % parallel:
        yield rule_message(
            "the number of ranks must be a multiple of actor.tensor_parallel x actor.pipeline_parallel",
            got=f"{world_size} ranks, {config.actor.tensor_parallel} x {config.actor.pipeline_parallel}",
            cure=f"start {parallel} ranks (torchrun --nproc-per-node {parallel} -m nemo_axpo.cli train ...) or lower them",
        )


def _server_problems(config: Config, *, world_size: int) -> Iterator[str]:
    """Servers that an engine lacks, or has no use for; whether they answer is asked when the engine is built."""
    engine = config.engine
    yield from _transport_problems(config)
    if engine.name not in SERVER_ENGINES:
        if engine.servers:
            rule = f"engine.servers is for the engines {', '.join(SERVER_ENGINES)}"
            cure = "remove it, or choose one of them"
            yield rule_message(rule, got=f"engine.name={engine.name}", cure=cure)
        return
    num_replicas = max(1, world_size // (config.actor.tensor_parallel * config.actor.pipeline_parallel))
    num_needed = num_replicas if engine.name in UNSHARED_SERVER_ENGINES else 1
    if len(engine.servers) < num_needed:
        kind = "at least one server per data-parallel replica" if engine.name in UNSHARED_SERVER_ENGINES else "servers"
        cure = "start servers and list them: engine.servers=[http://host:8000,...]"
        rule = f"engine.name={engine.name} needs {kind}"
        yield rule_message(rule, got=f"{len(engine.servers)} in engine.servers for {num_replicas}", cure=cure)
    wrong = [url for url in engine.servers if not _is_server_url(url)]
    if wrong:
        rule = "engine.servers must be URLs of the form http://host:port"
        yield rule_message(rule, got=wrong, cure="name protocol, host and port, and no path")
    if len(set(map(_plain_url, engine.servers))) < len(engine.servers):
        rule = "engine.servers must name every server once"
        yield rule_message(rule, got=list(engine.servers), cure="remove the repeated ones")


def _transport_problems(config: Config) -> Iterator[str]:
    """Transports that bring no weights to the engine."""
    name, transport = config.engine.name, config.engine.sync.transport
    if name not in SERVER_ENGINES:
        allowed, kind = ("auto", "iterator"), "an engine in the trainer's process"
    elif name in UNSHARED_SERVER_ENGINES:
        allowed, kind = ("auto",), "the servers of TensorRT-LLM"
    else:
        allowed, kind = ("auto", "shared_memory", "broadcast", "disk"), "servers"
    if transport not in allowed:
        rule = f"engine.sync.transport must be one of {', '.join(allowed)} for {kind} (engine.name={name})"
        yield rule_message(rule, got=transport, cure="leave it at auto")


def _vllm_problems(config: Config, *, world_size: int) -> Iterator[str]:
    if config.engine.name == "vllm" and world_size > 1:
        rule = "engine.name=vllm samples in the process of a trainer of one rank: vLLM takes its process group"
        cure = "start vLLM servers and set engine.name=vllm_server (docs/engines.md)"
        yield rule_message(rule, got=f"{world_size} ranks", cure=cure)


def _is_server_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.port) and parts.path in ("", "/")
    except ValueError:
        return False


def _plain_url(url: str) -> str:
    return url.rstrip("/").lower()


def _unsupported(config: Config) -> Iterator[str]:
    """Keys that other trainers have and this one refuses."""
    actor = config.actor
    if actor.context_parallel != 1:
        rule = "actor.context_parallel must be 1: a row's attention is not split over ranks"
        cure = "set it to 1; for long rows raise actor.tensor_parallel with actor.sequence_parallel=true, or recompute"
        yield rule_message(rule, got=actor.context_parallel, cure=cure)
    if actor.virtual_pipeline is not None:
        rule = "actor.virtual_pipeline must be null: the interleaved schedule is not supported"
        cure = "set it to null; lower actor.micro_batch_tokens for more micro-batches and a smaller pipeline bubble"
        yield rule_message(rule, got=actor.virtual_pipeline, cure=cure)
    if actor.peft is not None:
        rule = "actor.peft must be null: LoRA and other adapters are not supported, all weights are trained"
        cure = "set it to null; to save memory use actor.distributed_optimizer, actor.freeze_vision or actor.recompute"
        yield rule_message(rule, got=actor.peft, cure=cure)


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
            cure="choose device=cpu, or install a CUDA build of torch (requirements in README.md)",
        )


def _has_cuda() -> bool:
    import torch  # Late: a config is checked within milliseconds where no GPU is asked for.

    return torch.cuda.is_available()
