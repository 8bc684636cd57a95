"""What ``nemo-axpo plan`` runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console

from nemo_axpo.config.schema import Config
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.models.qwen3_vl.loading import load_hf_config
from nemo_axpo.plan import published
from nemo_axpo.plan.checks import layout_problems_of, memory_problems, warnings_of
from nemo_axpo.plan.plan import Machine, PlanRequest, make_plan
from nemo_axpo.plan.render import plan_values, print_plan, print_servers
from nemo_axpo.plan.servers import server_memory, server_problems
from nemo_axpo.plan.sizes import model_sizes

GPU_MEMORY_GIB = {"a100-40gb": 40.0, "a100": 80.0, "h100": 79.6, "h200": 140.4}
"""Memory by GPU as the driver reports it."""


def run_plan(
    config: Config,
    *,
    machine: Machine,
    image_share: float = 0.5,
    model_size: str | None = None,
    is_warm_start: bool = False,
    as_json: bool = False,
) -> None:
    """Prints the plan of a job; ConfigError where it cannot run, after printing what is known."""
    _check_assumptions(machine, image_share=image_share)
    hf_config = planned_model(config, model_size=model_size)
    request = PlanRequest(config, model_sizes(hf_config), machine, image_share, is_warm_start)
    problems = layout_problems_of(request, hf_config=hf_config)
    plan = None if problems else make_plan(request)
    warnings: list[str] = []
    if plan is not None:
        problems, warnings = memory_problems(request, plan, hf_config=hf_config), warnings_of(request, plan)
    if as_json:
        print(json.dumps(plan_values(request, plan, problems=problems, warnings=warnings), indent=2))
    else:
        print_plan(request, plan, problems=problems, warnings=warnings, console=Console())
    if problems:
        raise ConfigError("\n".join(problems))


def run_evaluation_plan(
    config: Config, *, machine: Machine, model_size: str | None = None, as_json: bool = False
) -> None:
    """Prints the generation servers of an evaluation, which trains nothing; ConfigError where they do not fit."""
    _check_assumptions(machine, image_share=0.0)
    sizes = model_sizes(planned_model(config, model_size=model_size))
    memory = server_memory(config, sizes=sizes, gpu_memory_gib=machine.gpu_memory_gib)
    if memory is None:
        rule, cure = "the plan of an evaluation is that of its servers", "use one of recipes/eval_*, or set job.servers"
        raise ConfigError(rule_message(rule, got="a config whose job starts none", cure=cure))
    problems = list(server_problems(config, memory, gpus_per_node=machine.gpus_per_node))
    if as_json:
        values = {"fits": not problems, "problems": problems, "servers": {**asdict(memory), "rows": memory.rows}}
        print(json.dumps(values, indent=2))
    else:
        print_servers(memory, problems=problems, console=Console())
    if problems:
        raise ConfigError("\n".join(problems))


def planned_model(config: Config, *, model_size: str | None) -> Any:
    """Configuration of a published size, of the checkpoint ``model.path``, or of the embedded world's tiny model.

    ConfigError for a job on GPUs that names none: the tiny model is for CPUs.
    """
    if model_size is not None:
        return published.published_config(model_size)
    if config.model.path is not None:
        return load_hf_config(config.model.path)
    if config.device == "cuda" or config.job.servers.per_node:
        cure = f"--model-size {'|'.join(published.SIZES)}, or model.path=DIR"
        raise ConfigError(rule_message("the plan of a job on GPUs needs its model", got="model.path: null", cure=cure))
    from nemo_axpo.models.qwen3_vl.tiny import tiny_config
    from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

    return tiny_config(build_tokenizer(), vocab_size=VOCAB_SIZE)


def gpu_memory_gib(text: str) -> float:
    """GiB from a number or the name of a GPU; ConfigError for anything else."""
    known = GPU_MEMORY_GIB.get(text.lower())
    if known is not None:
        return known
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        rule = f"--gpu-memory is GiB or one of: {', '.join(GPU_MEMORY_GIB)}"
        raise ConfigError(rule_message(rule, got=text, cure="give a positive number, e.g. --gpu-memory 80"))
    return size


def _check_assumptions(machine: Machine, *, image_share: float) -> None:
    bounds = {
        "--world-size": (machine.world_size, 1, 2**20),
        "--gpus-per-node": (machine.gpus_per_node, 1, 2**10),
        "--reserve": (machine.reserve_gib, 0.0, machine.gpu_memory_gib),
        "--image-share": (image_share, 0.0, 1.0),
    }
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ConfigError(rule_message(f"{name} must lie in [{low}, {high}]", got=value, cure="correct it"))
