"""Recipes of real models: each composes, holds what its golden file says, and fits 80 GB, in bf16 and in FP8."""

from __future__ import annotations

import pytest
from golden_recipes import GOLDEN, golden_path, golden_sbatch_path, golden_text, recipe_names, sbatch_text_of

from nemo_axpo.config.load import load_config
from nemo_axpo.plan import published
from nemo_axpo.plan.checks import layout_problems_of, memory_problems, warnings_of
from nemo_axpo.plan.plan import Machine, PlanRequest, make_plan
from nemo_axpo.plan.servers import server_memory, server_problems
from nemo_axpo.plan.sizes import model_sizes

NAMES = recipe_names()
TRAINED = [name for name in NAMES if not name.startswith("recipes/eval")]
MODELS = {size: published.published_config(size) for size in published.SIZES}


def planned(name, *overrides):
    """Problems, warnings and the plan of a recipe on the GPUs it asks for."""
    config = load_config(overrides, config_name=name)
    hf_config = MODELS[name.rpartition("_")[2]]
    machine = Machine(config.job.world_size, gpu_memory_gib=79.6)  # an H100's 80 GB, as its driver counts
    is_warm_start = name.startswith("recipes/sft")
    request = PlanRequest(config, model_sizes(hf_config), machine, is_warm_start=is_warm_start)
    problems = layout_problems_of(request, hf_config=hf_config)
    assert problems == []
    plan = make_plan(request)
    return memory_problems(request, plan, hf_config=hf_config), warnings_of(request, plan), plan


def test_every_stage_has_every_size():
    stages = {name.removeprefix("recipes/").rpartition("_")[0] for name in NAMES}
    assert {"sft", "grpo", "axpo", "eval"} == stages
    assert set(NAMES) == {f"recipes/{stage}_{size}" for stage in stages for size in published.SIZES}
    assert set(GOLDEN.iterdir()) == {path(name) for name in NAMES for path in (golden_path, golden_sbatch_path)}


@pytest.mark.parametrize("name", NAMES)
def test_the_composed_recipe_is_the_golden_one(name):
    assert golden_text(name) == golden_path(name).read_text("utf-8"), "python tests/unit/golden_recipes.py"


@pytest.mark.parametrize("name", NAMES)
def test_the_job_script_is_the_golden_one(name):
    assert sbatch_text_of(name) == golden_sbatch_path(name).read_text("utf-8"), "python tests/unit/golden_recipes.py"


@pytest.mark.parametrize("precision", ["bf16", "fp8_blockwise"])
@pytest.mark.parametrize("name", TRAINED)
def test_it_fits_80_gb_with_memory_to_spare(name, precision):
    problems, warnings, plan = planned(name, f"precision={precision}")
    assert (problems, warnings) == ([], [])
    assert plan.settings.has_fp8 == (precision != "bf16")


@pytest.mark.parametrize("size", published.SIZES)
def test_grpo_and_axpo_recipes_differ_by_the_algorithm(size):
    axpo, grpo = (load_config(config_name=f"recipes/{name}_{size}") for name in ("axpo", "grpo"))
    assert axpo.model_dump(exclude={"algorithm", "output_dir"}) == grpo.model_dump(exclude={"algorithm", "output_dir"})
    assert (axpo.algorithm.name, grpo.algorithm.name) == ("axpo", "grpo")
    assert axpo.rollout.max_row_tokens == axpo.engine.max_model_len == axpo.actor.micro_batch_tokens == 20_480


@pytest.mark.parametrize("size", ["2b", "4b", "8b"])
def test_an_embedded_engine_fits_beside_the_smaller_trainers(size):
    problems, _, plan = planned(f"recipes/axpo_{size}", "engine=hf", "engine.dtype=bfloat16")
    assert problems == [] and plan.servers is None
    assert plan.stages[0].memory.engine_cache > 0


def test_an_embedded_engine_does_not_fit_beside_32b():
    problems, _, _ = planned("recipes/axpo_32b", "engine=hf", "engine.dtype=bfloat16")
    assert "engine_weights" in problems[0] and "engine.servers" in problems[0]


def test_servers_that_are_too_small_are_refused():
    problems, _, _ = planned("recipes/axpo_32b", "job.servers.gpus_each=1", "job.servers.gpu_memory_utilization=0.85")
    assert "a server's GPUs must hold the weights" in problems[0] and "62.1 GiB of weights" in problems[0]
    problems, _, _ = planned("recipes/axpo_2b", "job.servers.per_node=5")
    assert "must share its 8 GPUs; got 9" in problems[0]


@pytest.mark.parametrize("size", published.SIZES)
def test_evaluation_asks_as_the_paper_does_and_its_servers_fit(size):
    config = load_config(config_name=f"recipes/eval_{size}")
    asked = config.benchmarks
    assert (asked.num_rollouts, asked.temperature, asked.top_p, asked.top_k) == (4, 0.7, 0.8, 20)
    assert (asked.presence_penalty, asked.max_turns, config.engine.max_model_len) == (1.5, 5, 32_768)
    memory = server_memory(config, sizes=model_sizes(MODELS[size]), gpu_memory_gib=79.6)
    assert memory.rows >= 8 and list(server_problems(config, memory, gpus_per_node=8)) == []


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("recipes/sft")])
def test_servers_get_the_time_of_the_longest_turn_and_no_rollout_waits_for_one_that_hangs(name):
    config, tokens_per_s = load_config(config_name=name), 20  # of one request among many: slow, and no reason to lose it
    section = config.benchmarks if name.startswith("recipes/eval") else config.rollout
    longest = section.max_new_tokens or section.max_row_tokens
    assert longest / tokens_per_s < config.engine.request_timeout_s < section.max_time_s


def test_a_recipe_is_for_its_number_of_ranks():
    from nemo_axpo.config.checks import config_problems

    config = load_config(config_name="recipes/axpo_8b")
    assert config_problems(config, world_size=8) == []
    assert "start 8 ranks, or set job.num_nodes=null" in config_problems(config, world_size=16)[0]


def test_the_model_alone_has_the_limits_of_a_real_one():
    config = load_config(["model=qwen3_vl_8b"])
    assert (config.rollout.max_row_tokens, config.rollout.max_new_tokens, config.optimizer.lr) == (20_480, 8_192, 2e-6)
    assert config.tools.max_error_chars == 400
