"""Values that do not fit each other, the machine or the files they name."""

from __future__ import annotations

import pytest

from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.algorithms.base import get_algorithm
from nemo_axpo.config import checks
from nemo_axpo.config.checks import algorithm_arguments, check_config, check_model_path, memory_arguments
from nemo_axpo.config.load import load_config
from nemo_axpo.errors import ConfigError


def problems_of(*overrides, world_size=1):
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(overrides), world_size=world_size)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("algorithm", ["axpo", "grpo"])
def test_the_shipped_recipe_passes(algorithm):
    check_config(load_config([f"algorithm={algorithm}"]))


def test_a_prefix_must_fit_the_budget():
    (problem,) = problems_of("data.num_questions_per_step=1", "actor.num_minibatches=1", "algorithm.resample_ratio=0.4")
    assert "K <= r·B·N; got K=4, r=0.4, B=1, N=8 (r·B·N=3.2)" in problem and "lower K" in problem


def test_the_budget_is_exact_at_its_edge():
    check_config(load_config(["data.num_questions_per_step=1", "actor.num_minibatches=1", "algorithm.resample_ratio=0.5"]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rollout.max_row_tokens=193", "engine.max_model_len=192"], "got 193 > 192"),
        (["rollout.max_new_tokens=140", "rollout.max_row_tokens=140"], "got 140 >= 140"),
        (["actor.micro_batch_tokens=100", "rollout.max_row_tokens=140"], "got 100 < 140"),
        (["actor.num_minibatches=17", "data.num_questions_per_step=16"], "got 17 > 16"),
        (["actor.tensor_parallel=2"], "got 1 ranks, 2 x 1: start 2 ranks"),
        (["actor.context_parallel=2"], "got 2: set it to 1; for long rows"),
        (["actor.virtual_pipeline=2"], "the interleaved schedule is not supported; got 2: set it to null"),
        (["actor.peft=lora"], "LoRA and other adapters are not supported, all weights are trained; got lora"),
        (["actor.offload_optimizer=true"], "got distributed_optimizer=false: set distributed_optimizer=true"),
        (
            ["actor.offload_optimizer=true", "actor.distributed_optimizer=true"],
            "got device=cpu: set offload_optimizer=false",
        ),
    ],
)
def test_rule_value_and_cure(overrides, expected):
    (problem,) = problems_of(*overrides)
    assert expected in problem


def test_vllm_in_the_trainers_process_needs_a_trainer_of_one_rank(monkeypatch):
    monkeypatch.setattr(checks, "has_extra", lambda name: True)
    (problem,) = problems_of("engine=vllm", world_size=2)
    assert "a trainer of one rank" in problem and "got 2 ranks: start vLLM servers and set engine.name=vllm_server" in problem
    check_config(load_config(["engine=vllm"]))


def test_vllm_must_be_installed(monkeypatch):
    monkeypatch.setattr(checks, "has_extra", lambda name: name != "vllm")
    (problem,) = problems_of("engine=vllm")
    assert problem == (
        "engine.name=vllm needs the package vllm; got it is not installed: pip install 'nemo_axpo[vllm]', or set "
        "engine.name=hf"
    )


def test_every_memory_setting_is_a_key_of_the_actor():
    overrides = ["actor.recompute=full", "actor.recompute_num_layers=2", "actor.logprob_chunk_tokens=64"]
    settings = MemorySettings(**memory_arguments(load_config([*overrides, "actor.distributed_optimizer=true"])))
    assert settings == MemorySettings(
        "full", recompute_num_layers=2, distributed_optimizer=True, logprob_chunk_tokens=64
    )


def test_a_layout_that_fits_the_job_passes():
    check_config(load_config(["actor.tensor_parallel=2", "actor.pipeline_parallel=2"]), world_size=8)


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["engine=trtllm"], 1, "needs at least one server per data-parallel replica; got 0 in engine.servers for 1: start"),
        (["engine=trtllm", "engine.servers=[http://a:1]"], 2, "got 1 in engine.servers for 2"),
        (["engine.sync.transport=disk"], 1, "one of auto, iterator for an engine in the trainer's process (engine.name=hf)"),
        (
            ["engine=trtllm", "engine.servers=[http://a:1]", "engine.sync.transport=iterator"],
            1,
            "must be one of auto for the servers of TensorRT-LLM (engine.name=trtllm); got iterator: leave it at auto",
        ),
        (["engine.servers=[http://a:1]"], 1, "engine.servers is for the engines"),
        (["engine=trtllm", "engine.servers=[a:8000]"], 1, "form http://host:port; got ['a:8000']: name protocol"),
        (["engine=trtllm", "engine.servers=['http://a:1/v1']"], 1, "got ['http://a:1/v1']: name protocol, host and port"),
        (["engine=trtllm", "engine.servers=['http://a:x']"], 1, "got ['http://a:x']"),
        (["engine=trtllm", "engine.servers=['http://a:1','http://A:1/']"], 1, "must name every server once"),
    ],
)
def test_servers(overrides, world_size, expected):
    (problem,) = problems_of(*overrides, world_size=world_size)
    assert expected in problem


def test_servers_for_every_replica_pass():
    urls = "engine.servers=['http://a:8000','https://b.example:8000/']"
    check_config(load_config(["engine=trtllm", urls, "actor.tensor_parallel=2"]), world_size=4)


SERVED = "engine.servers=['http://a:1']"


@pytest.mark.parametrize("engine", ["vllm_server", "trtllm"])
def test_a_request_to_a_server_is_given_up_before_its_rollout(engine):
    overrides = [f"engine={engine}", SERVED, "rollout.max_time_s=500"]
    (problem,) = problems_of(*overrides, "engine.request_timeout_s=500")
    assert problem == (
        "engine.request_timeout_s must be below rollout.max_time_s, or a server that hangs makes rollouts wrong, not lost; "
        "got 500 >= 500: lower the first or raise the second"
    )
    check_config(load_config([*overrides, "engine.request_timeout_s=499.5"]))
    check_config(load_config(["engine=hf", "rollout.max_time_s=500", "engine.request_timeout_s=500"]))


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(checks, "_has_cuda", lambda: False)
    (problem,) = problems_of("device=cuda")
    assert "choose device=cpu" in problem


def test_all_problems_at_once():
    assert len(problems_of("rollout.max_row_tokens=193", "engine.max_model_len=192", "actor.tensor_parallel=3")) == 2


def test_the_policy_must_be_a_checkpoint(tmp_path):
    for path in (None, str(tmp_path)):
        config = load_config(settings={"model.path": path})
        with pytest.raises(ConfigError, match="model.path must be a Hugging Face checkpoint directory"):
            check_model_path(config)
    (tmp_path / "config.json").write_text("{}")
    check_model_path(load_config(settings={"model.path": str(tmp_path)}))


def test_the_section_constructs_its_algorithm():
    for name in ("axpo", "grpo"):
        config = load_config([f"algorithm={name}", "algorithm.num_rollouts=10"])
        assert get_algorithm(name)(**algorithm_arguments(config)).num_rollouts == 10
