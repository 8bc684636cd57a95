"""What a plan refuses, what it warns of, and the cure: rule, value, and settings with which the job would run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from nemo_axpo.config.checks import config_problems
from nemo_axpo.errors import rule_message
from nemo_axpo.models.qwen3_vl.layout_rules import layout_problems
from nemo_axpo.plan.memory import RankMemory
from nemo_axpo.plan.plan import GIB, Plan, PlanRequest, make_plan
from nemo_axpo.plan.servers import server_problems

TENSOR_SIZES, PIPELINE_SIZES = (1, 2, 4, 8), (1, 2, 4)
_RECOMPUTE: tuple[dict[str, Any], ...] = (
    {"recompute": "none"},
    {"recompute": "selective", "recompute_modules": ("mlp",)},
    {"recompute": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
)
"""What the search for a cure tries, the cheapest first."""
_MAX_BUBBLE = 0.2
_FULL = 0.9
"""Share of the usable memory above which a job is warned that it has little to spare."""
_CURES = {
    "weights": "a larger actor.tensor_parallel or actor.pipeline_parallel",
    "reference": "loss.kl_coef=0",
    "fp8_weights": "a larger actor.tensor_parallel or actor.pipeline_parallel",
    "gradients": "a larger actor.tensor_parallel or actor.pipeline_parallel",
    "optimizer": "more replicas with actor.distributed_optimizer=true",
    "engine_weights": "an engine on other GPUs (engine.servers)",
    "engine_cache": "a smaller engine.max_num_seqs or engine.max_model_len",
    "inputs": "a smaller actor.micro_batch_tokens",
    "logits": "a smaller actor.logprob_chunk_tokens",
}
"""What lowers a kind of memory; a smaller micro-batch lowers those that are not named."""


def layout_problems_of(request: PlanRequest, *, hf_config: Any) -> list[str]:
    """Why the job could not start on this many ranks, whatever their memory."""
    config = request.config
    shared = layout_problems(
        hf_config,
        tensor_parallel=config.actor.tensor_parallel,
        pipeline_parallel=config.actor.pipeline_parallel,
    )
    problems = [*config_problems(config, world_size=request.machine.world_size), *shared]
    if not problems:
        return []
    found = smallest_layout(request, hf_config=hf_config)
    return [*problems, *([f"a layout that fits: {settings_text(found)}"] if found else [])]


def memory_problems(request: PlanRequest, plan: Plan, *, hf_config: Any) -> list[str]:
    """The stages and servers that do not fit the GPU, the stages with the smallest layout that does."""
    usable = request.machine.usable_bytes
    too_full = [stage for stage in plan.stages if stage.memory.total > usable]
    served = list(server_problems(request.config, plan.servers, gpus_per_node=request.machine.gpus_per_node))
    if not too_full:
        return served
    worst = max(too_full, key=lambda stage: stage.memory.total)
    found = smallest_layout(request, hf_config=hf_config)
    kind, size = largest_kind(worst.memory)
    cure = f"use {settings_text(found)}" if found else _without_layout(request, plan, kind=kind)
    rule = f"a rank must fit {usable / GIB:.1f} GiB ({request.machine.gpu_memory_gib:g} less a reserve)"
    got = f"{worst.memory.total / GIB:.1f} GiB on stage {worst.stage}, {size / GIB:.1f} of it {kind}"
    return [rule_message(rule, got=got, cure=cure), *served]


def _without_layout(request: PlanRequest, plan: Plan, *, kind: str) -> str:
    """The cure where no layout fits."""
    if kind == "engine_cache":
        first = plan.stages[0].memory
        free = request.machine.usable_bytes - (first.total - first.engine_cache)
        if free >= plan.engine.cache_per_sequence:
            return f"use engine.max_num_seqs={int(free // plan.engine.cache_per_sequence)}"
    cure = _CURES.get(kind, "a smaller actor.micro_batch_tokens (and rollout.max_row_tokens)")
    sizes = f"TP in {TENSOR_SIZES} and PP in {PIPELINE_SIZES}"
    return f"no layout with {sizes} fits on these ranks: use {cure}, or GPUs with more memory"


def largest_kind(memory: RankMemory) -> tuple[str, float]:
    """Name and bytes of the kind that takes most."""
    sizes = {field.name: getattr(memory, field.name) for field in fields(memory)}
    kind = max(sizes, key=lambda name: sizes[name])
    return kind, sizes[kind]


def smallest_layout(request: PlanRequest, *, hf_config: Any) -> dict[str, Any] | None:
    """Keys of the config's section ``actor``: the fewest ranks per model that divide and fit, with as little
    recomputation and as few stages as possible; None where nothing fits."""
    candidates = itertools.product(TENSOR_SIZES, PIPELINE_SIZES, range(len(_RECOMPUTE)))
    for tensor_parallel, pipeline_parallel, number in sorted(candidates, key=lambda c: (c[0] * c[1], c[2], c[1])):
        ranks = tensor_parallel * pipeline_parallel
        keys = {
            "tensor_parallel": tensor_parallel,
            "pipeline_parallel": pipeline_parallel,
            "sequence_parallel": tensor_parallel > 1,
            "distributed_optimizer": request.machine.world_size > ranks,
            **_RECOMPUTE[number],
        }
        if _fits(request.with_actor(**keys), hf_config=hf_config):
            return keys
    return None


def settings_text(keys: dict[str, Any]) -> str:
    """Keys of the section ``actor`` as a command line takes them."""
    values = {name: str(value).lower() if isinstance(value, bool) else value for name, value in keys.items()}
    return " ".join(f"actor.{name}={_listed(value)}" for name, value in values.items())


def _listed(value: Any) -> Any:
    return f"[{','.join(value)}]" if isinstance(value, tuple) else value


def _fits(request: PlanRequest, *, hf_config: Any) -> bool:
    actor, machine = request.config.actor, request.machine
    layout = {"tensor_parallel": actor.tensor_parallel, "pipeline_parallel": actor.pipeline_parallel}
    if config_problems(request.config, world_size=machine.world_size) or layout_problems(hf_config, **layout):
        return False
    plan = make_plan(request)
    return plan.peak_bytes <= machine.usable_bytes and not plan.layout.tensor_groups_across_nodes()


def warnings_of(request: PlanRequest, plan: Plan) -> list[str]:
    """What works, but not well."""
    return [
        *_layout_warnings(plan),
        *_pipeline_warnings(request, plan),
        *_memory_warnings(request, plan),
        *_batch_warnings(request, plan),
    ]


def _layout_warnings(plan: Plan) -> Iterator[str]:
    layout = plan.layout
    across = layout.tensor_groups_across_nodes()
    if across:
        rule = "tensor-parallel ranks talk in every layer and should share a node"
        got = f"{across} groups of {layout.tensor_parallel} across nodes of {layout.gpus_per_node} GPUs"
        yield rule_message(rule, got=got, cure="lower actor.tensor_parallel to a divisor of the GPUs of a node")
    if layout.world_size % layout.gpus_per_node and layout.num_nodes > 1:
        idle = layout.num_nodes * layout.gpus_per_node - layout.world_size
        cure = f"start a multiple of {layout.gpus_per_node} ranks"
        yield rule_message("a job should fill its nodes", got=f"{idle} GPUs idle", cure=cure)
    if layout.tensor_parallel > 1 and not plan.settings.sequence_parallel:
        rule = "with tensor parallelism, sequence parallelism divides norms and residuals too"
        yield rule_message(rule, got="actor.sequence_parallel=false", cure="set actor.sequence_parallel=true")


def _pipeline_warnings(request: PlanRequest, plan: Plan) -> Iterator[str]:
    stages = plan.layout.pipeline_parallel
    if stages == 1:
        return
    bubble = plan.step.bubble(stages)
    if bubble > _MAX_BUBBLE:
        rule = f"pipeline stages should wait less than {_MAX_BUBBLE:.0%} of the time"
        got = f"{bubble:.0%} with {plan.step.num_microbatches} micro-batches on {stages} stages"
        yield rule_message(rule, got=got, cure="use fewer stages, fewer replicas or smaller micro-batches")
    if request.sizes.is_tied:
        copy = plan.stages[-1].parameters.output * plan.settings.value_bytes / GIB
        rule = "with tied embeddings the last stage holds a copy of the embedding, whose gradient both stages exchange"
        yield rule_message(rule, got=f"{copy:.2f} GiB more", cure="prefer tensor parallelism for this model")


def _memory_warnings(request: PlanRequest, plan: Plan) -> Iterator[str]:
    share = plan.peak_bytes / request.machine.usable_bytes
    if _FULL < share <= 1:
        rule = f"a rank should use less than {_FULL:.0%} of its memory: activations of unusual batches are larger"
        yield rule_message(rule, got=f"{share:.0%}", cure="lower actor.micro_batch_tokens or engine.max_num_seqs")
    if plan.layout.data_parallel > 1 and not plan.settings.memory.distributed_optimizer:
        saved = plan.stages[0].memory.optimizer * (1 - 1 / plan.layout.data_parallel) / GIB
        rule = "replicas can share the optimizer's state"
        cure = "set actor.distributed_optimizer=true"
        yield rule_message(rule, got=f"{saved:.1f} GiB held more than needed", cure=cure)
    recomputed = plan.settings.memory
    if recomputed.recompute == "selective" and recomputed.recompute_modules == ("core_attn",):
        rule = "recomputing attention alone frees nothing where attention keeps no scores, as all kernels on a GPU do"
        cure = "add mlp: actor.recompute_modules=[core_attn,mlp], or set actor.recompute=none"
        yield rule_message(rule, got="actor.recompute_modules=[core_attn]", cure=cure)


def _batch_warnings(request: PlanRequest, plan: Plan) -> Iterator[str]:
    if request.is_warm_start:
        return
    questions, replicas = request.config.data.num_questions_per_step, plan.layout.data_parallel
    if questions % replicas:
        rule = "the questions of a step should divide evenly over the replicas, which sample them"
        cure = f"set data.num_questions_per_step to a multiple of {replicas}"
        yield rule_message(rule, got=f"{questions} over {replicas}", cure=cure)
    if request.config.algorithm.name == "axpo" and plan.step.num_prefixes < replicas:
        rule = "each replica should have a prefix to continue (floor(r·B·N / K) of a step)"
        cure = "raise data.num_questions_per_step or algorithm.resample_ratio"
        yield rule_message(rule, got=f"{plan.step.num_prefixes} prefixes for {replicas} replicas", cure=cure)
