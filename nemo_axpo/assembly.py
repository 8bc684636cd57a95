"""Builds the parts of a run from its config; commands put them together.

Every part is built from what it needs, so that a student can build one alone in a shell. The only module, with
``engines.registry``, that turns words of a config into classes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.algorithms.base import Algorithm, get_algorithm
from nemo_axpo.config.checks import algorithm_arguments, layer_settings, memory_arguments
from nemo_axpo.config.schema import BenchmarksConfig, Config, RolloutConfig
from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.image_sizes import ImageSizes
from nemo_axpo.data.images import ImageStore, load_image_processor
from nemo_axpo.data.questions import FILES
from nemo_axpo.data.row_cost import RowCostModel, row_cost_model
from nemo_axpo.data.vocabulary import banned_token_ids, load_tokenizer
from nemo_axpo.distributed.replicas import OneProcess, Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.engines.fleet.build import ServerOptions
from nemo_axpo.engines.fleet.fleet import FleetSettings
from nemo_axpo.engines.registry import create_engine
from nemo_axpo.engines.vllm.settings import VllmSettings
from nemo_axpo.loop import QuestionSource
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.models.qwen3_vl.checkpoint_check import check_processor, check_tokenizer, check_weights
from nemo_axpo.models.qwen3_vl.loading import load_hf_config
from nemo_axpo.plan.sizes import model_sizes
from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.rewards.build import build_verifiers
from nemo_axpo.rollouts.agent import Agent
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.rollouts.prompt_meter import PromptMeter
from nemo_axpo.tools.agent_prompt import read_instructions
from nemo_axpo.tools.build import build_tool
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.tools.limits import call_limits
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.weight_sync.shares import server_share
from nemo_axpo.weight_sync.sync import WeightSync
from nemo_axpo.world.questions import SOURCE, QuestionStream
from nemo_axpo.world.scene import SceneStyle
from nemo_axpo.world.specks import SPECKS, SpeckStream

if TYPE_CHECKING:
    from nemo_axpo.actors.actor import Actor
    from nemo_axpo.actors.megatron_setup import ParallelLayout
    from nemo_axpo.actors.optimizer import AdamSettings

CONTROL_KEY_VARIABLE = "NEMO_AXPO_SERVER_CONTROL_KEY"
"""Environment variable of the secret that signs control calls to generation servers; secrets are no part of a config."""
_ONE_PROCESS = OneProcess()
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Workbench:
    """What every command shares: a checkpoint's files, the images in flight, the renderer, the tools and the verifiers."""

    checkpoint: Path
    hf_config: Any
    image_processor: Any
    images: ImageStore
    renderer: ChatRenderer
    tools: ToolExecutor
    verifiers: VerifierRegistry

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that neither the engine nor the trainer gives any probability."""
        return banned_token_ids(self.renderer.tokenizer, vocab_size=self.hf_config.text_config.vocab_size)


def build_workbench(config: Config, *, checkpoint: str | Path) -> Workbench:
    """Reads a checkpoint's config, tokenizer and image processor; ValueError where these or its weights do not fit."""
    hf_config = load_hf_config(checkpoint)
    image_processor, tokenizer = load_image_processor(checkpoint), load_tokenizer(checkpoint)
    check_processor(image_processor, hf_config=hf_config)
    check_tokenizer(tokenizer, hf_config=hf_config)
    check_weights(checkpoint, hf_config=hf_config)
    images = ImageStore(image_processor)
    registry = _tool_registry(config, images=images)
    limits = call_limits(config.tools, registry.names)
    tools = ToolExecutor(registry, limits=limits, max_error_chars=config.tools.max_error_chars)
    renderer = _renderer(config, tokenizer=tokenizer, images=images, registry=registry)
    verifiers = build_verifiers(config.rewards)
    return Workbench(Path(checkpoint), hf_config, image_processor, images, renderer, tools, verifiers)


def build_prompt_meter(config: Config, *, checkpoint: str | Path) -> PromptMeter:
    """Measures prompts as training renders them; of the checkpoint, tokenizer and image processor are enough."""
    image_processor, tokenizer = load_image_processor(checkpoint), load_tokenizer(checkpoint)
    registry = _tool_registry(config, images=ImageStore(image_processor))
    renderer = _renderer(config, tokenizer=tokenizer, images=ImageSizes(image_processor), registry=registry)
    return PromptMeter(renderer, limits=_rollout_limits(config.rollout))


def _tool_registry(config: Config, *, images: ImageStore) -> ToolRegistry:
    return ToolRegistry(build_tool(name, config=config.tools, images=images) for name in config.tools.names)


def _renderer(
    config: Config, *, tokenizer: Any, images: ImageStore | ImageSizes, registry: ToolRegistry
) -> ChatRenderer:
    instructions = read_instructions(config.tools.instructions, tool_names=registry.names)
    return ChatRenderer(tokenizer, images, tool_schemas=registry.schemas, instructions=instructions)


def build_questions(config: Config, *, stream: str, seed: int, images: ImageStore) -> QuestionSource:
    """A stream of questions; its name separates training, evaluation and warm start under one seed."""
    if config.data.name == FILES:
        from nemo_axpo.data.file_questions import build_file_questions  # loads the package datasets, a second

        return build_file_questions(config.data, stream=stream, seed=seed, images=images)
    if config.data.name == SPECKS:
        return SpeckStream(stream, seed=seed, image_store=images)
    assert config.data.name == SOURCE, f"the schema knows no data {config.data.name!r}"
    world = config.world
    style = SceneStyle(dots=world.dots, tint=world.tint, daylight=world.daylight)
    return QuestionStream(stream, seed=seed, style=style, image_store=images)


def build_engine(config: Config, *, bench: Workbench, replicas: Replicas = _ONE_PROCESS) -> Engine:
    """The generation engine of this replica, without weights yet; its servers, where it has some, are checked."""
    return create_engine(
        config.engine.name,
        hf_config=bench.hf_config,
        checkpoint=bench.checkpoint,
        image_store=bench.images,
        stop_token_ids=bench.renderer.stop_token_ids,
        banned_token_ids=bench.banned_token_ids,
        max_num_seqs=config.engine.max_num_seqs,
        max_model_len=config.engine.max_model_len,
        device=config.device,
        dtype=DTYPES[config.engine.dtype],
        servers=server_options(config, replicas=replicas),
        vllm=VllmSettings(**config.engine.vllm.model_dump()),
    )


def server_options(config: Config, *, replicas: Replicas) -> ServerOptions:
    """The generation servers of this replica; none where the engine has no servers."""
    engine = config.engine
    settings = FleetSettings(
        request_timeout_s=engine.request_timeout_s,
        max_retries=engine.max_retries,
        health_every_s=engine.health_every_s,
        max_outage_s=engine.max_outage_s,
    )
    return ServerOptions(
        server_share(engine.servers, replica=replicas.index, num_replicas=replicas.count),
        served_model=engine.served_model,
        settings=settings,
        control_key=os.environ.get(CONTROL_KEY_VARIABLE),
        sync=engine.sync,
    )


def build_weight_sync(
    config: Config,
    *,
    actor: Actor,
    engine: Engine | None,
    replicas: Replicas,
    prove: Callable[[], Awaitable[float]] | None = None,
) -> WeightSync:
    """Brings the actor's weights to ``engine``, which is None on ranks that do not sample."""
    section = config.engine
    return WeightSync(
        actor,
        engine,
        replicas=replicas,
        num_servers=len(section.servers) or None,
        prove=prove if section.sync.proof_every else None,
        prove_every=section.sync.proof_every,
    )


def build_producer(
    config: Config, *, bench: Workbench, engine: Engine, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> Producer:
    """Rollouts sampled in one way; training, evaluation and a teacher have a producer each."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    agent = _agent(config, bench=bench, engine=engine, limits=_rollout_limits(config.rollout), sampling=sampling)
    return Producer(
        agent,
        verifiers=bench.verifiers,
        max_verifier_retries=config.rewards.max_retries,
        max_lost=config.rollout.max_lost,
    )


def build_benchmark_producer(config: Config, *, bench: Workbench, engine: Engine) -> Producer:
    """Rollouts as benchmarks are asked."""
    section = config.benchmarks
    sampling = section.model_dump(include={"temperature", "top_p", "top_k", "presence_penalty"})
    agent = _agent(config, bench=bench, engine=engine, limits=_rollout_limits(section), sampling=sampling)
    return Producer(agent, verifiers=bench.verifiers, max_verifier_retries=config.rewards.max_retries)


def _rollout_limits(section: RolloutConfig | BenchmarksConfig) -> RolloutLimits:
    return RolloutLimits(
        max_new_tokens=section.max_new_tokens or section.max_row_tokens,
        max_row_tokens=section.max_row_tokens,
        max_turns=section.max_turns,
        max_time_s=section.max_time_s,
    )


def _agent(
    config: Config, *, bench: Workbench, engine: Engine, limits: RolloutLimits, sampling: Mapping[str, float]
) -> Agent:
    return Agent(
        engine,
        renderer=bench.renderer,
        tools=bench.tools,
        limits=limits,
        needs_answer_block=config.rewards.needs_answer_block,
        **sampling,
    )


def build_algorithm(config: Config) -> Algorithm:
    """GRPO or AXPO: the one word in which two runs differ."""
    return get_algorithm(config.algorithm.name)(**algorithm_arguments(config))


def build_loss(config: Config) -> PolicyLoss:
    """The policy loss of the config."""
    return PolicyLoss(**config.loss.model_dump())


def build_actor(
    config: Config, *, bench: Workbench, optimizer: AdamSettings, keep_reference: bool, seed: int = 0
) -> Actor:
    """The policy on megatron-core with the checkpoint's weights; its reference policy is those same weights."""
    from nemo_axpo.actors.actor import Actor

    section = config.actor
    return Actor(
        bench.checkpoint,
        image_store=bench.images,
        banned_token_ids=bench.banned_token_ids,
        optimizer=optimizer,
        micro_batch_tokens=section.micro_batch_tokens,
        packing=section.packing,
        layout=parallel_layout(config),
        device=config.device,
        dtype=DTYPES[section.dtype],
        seed=seed,
        keep_reference=keep_reference,
        memory=MemorySettings(**memory_arguments(config)),
        freeze_vision=section.freeze_vision,
        layers=layer_settings(config),
    )


def build_replicas(config: Config) -> Replicas:
    """This rank's place in the job; under ``torchrun`` it joins the process group and megatron's groups."""
    from nemo_axpo.actors import megatron_setup

    timeout_s = 60 * config.job.timeout_min
    megatron_setup.initialize(
        parallel_layout(config), device=torch.device(config.device), seed=config.seed, timeout_s=timeout_s
    )
    ranks = megatron_setup.replica_ranks()
    if sum(map(len, ranks)) == 1:
        return OneProcess()
    from nemo_axpo.distributed.process_replicas import ProcessReplicas

    return ProcessReplicas(ranks, timeout_s=timeout_s)


def build_row_cost(config: Config, *, bench: Workbench) -> RowCostModel:
    """What a row costs the actor; replicas are balanced by it."""
    return row_cost_model(
        model_sizes(bench.hf_config),
        image_token_id=bench.hf_config.image_token_id,
        is_vision_frozen=config.actor.freeze_vision,
    )


def parallel_layout(config: Config) -> ParallelLayout:
    """How ranks share one model."""
    from nemo_axpo.actors.megatron_setup import ParallelLayout

    section = config.actor
    return ParallelLayout(section.tensor_parallel, section.pipeline_parallel, section.sequence_parallel)


def policy_optimizer(config: Config) -> AdamSettings:
    """AdamW of reinforcement learning."""
    from nemo_axpo.actors.optimizer import AdamSettings

    return AdamSettings(**config.optimizer.model_dump(exclude={"warmup_steps"}))


def warm_start_optimizer(config: Config) -> AdamSettings:
    """AdamW of the supervised warm start."""
    from nemo_axpo.actors.optimizer import AdamSettings

    return AdamSettings(**config.sft.model_dump(include={"lr", "betas", "weight_decay", "clip_grad"}))
