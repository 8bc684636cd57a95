"""What the plan refuses and warns of, and whether its cures cure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_qwen3_vl import tiny_config

from nemo_axpo.config.load import load_config
from nemo_axpo.plan.checks import layout_problems_of, memory_problems, smallest_layout, warnings_of
from nemo_axpo.plan.plan import GIB, Machine, Plan, PlanRequest, make_plan
from nemo_axpo.plan.published import published_config
from nemo_axpo.plan.sizes import model_sizes

LARGE = ("actor.dtype=bfloat16", "engine.dtype=bfloat16", "rollout.max_row_tokens=2048", "rollout.max_new_tokens=1024",
         "engine.max_model_len=2048", "engine.max_num_seqs=8", "actor.micro_batch_tokens=2048",
         "rollout.max_turns=1")  # fmt: skip


def request_of(*overrides, hf_config, world_size=8, gpus_per_node=8, memory=80.0, image_share=0.0) -> PlanRequest:
    machine = Machine(world_size, gpus_per_node, gpu_memory_gib=memory)
    return PlanRequest(load_config(overrides), model_sizes(hf_config), machine, image_share)


def planned(*overrides, hf_config, **options) -> tuple[PlanRequest, Plan]:
    request = request_of(*overrides, hf_config=hf_config, **options)
    assert layout_problems_of(request, hf_config=hf_config) == []
    return request, make_plan(request)


def test_ranks_and_sizes_that_do_not_divide():
    hf_config = tiny_config(layers=4)
    request = request_of("actor.tensor_parallel=4", hf_config=hf_config, world_size=6)
    ranks, groups, cure = layout_problems_of(request, hf_config=hf_config)
    assert "got 6 ranks, 4 x 1" in ranks
    assert "num_key_value_heads must be divisible" in groups and "got 2 over 4: share it by 1 or 2" in groups
    assert cure == (
        "a layout that fits: actor.tensor_parallel=1 actor.pipeline_parallel=1 actor.sequence_parallel=false "
        "actor.distributed_optimizer=true actor.recompute=none"
    )


def test_a_budget_of_no_prefix_is_refused():
    hf_config = tiny_config(layers=4)
    one_question = ("data.num_questions_per_step=1", "actor.num_minibatches=1")
    request = request_of(*one_question, "algorithm.resample_ratio=0.4", hf_config=hf_config)
    (problem,) = layout_problems_of(request, hf_config=hf_config)
    assert "K <= r·B·N" in problem and "lower K" in problem


def test_what_does_not_fit_is_refused_with_the_smallest_layout_that_does():
    hf_config = published_config("32b")
    request, plan = planned(*LARGE, hf_config=hf_config, world_size=16, gpus_per_node=16, memory=141.0)
    (problem,) = memory_problems(request, plan, hf_config=hf_config)
    cure = problem.split(": use ")[1]
    assert f"got {plan.peak_bytes / GIB:.1f} GiB on stage 0" in problem
    cured = replace(request, config=load_config([*LARGE, *cure.split()]))
    assert memory_problems(cured, make_plan(cured), hf_config=hf_config) == []
    ranks = cured.config.actor.tensor_parallel * cured.config.actor.pipeline_parallel
    for tensor_parallel in (1, 2, 4, 8):
        for pipeline_parallel in (1, 2, 4):
            if tensor_parallel * pipeline_parallel < ranks:
                smaller = cured.with_actor(
                    tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel,
                    sequence_parallel=tensor_parallel > 1, distributed_optimizer=True, recompute="full",
                )  # fmt: skip
                assert make_plan(smaller).peak_bytes > request.machine.usable_bytes


def test_a_cache_that_does_not_fit_is_cured_by_fewer_sequences():
    hf_config = published_config("2b")
    overrides = [o for o in LARGE if "max_num_seqs" not in o] + ["engine.max_num_seqs=512"]
    request, plan = planned(*overrides, hf_config=hf_config, world_size=1, memory=80.0)
    (problem,) = memory_problems(request, plan, hf_config=hf_config)
    assert "engine_cache" in problem
    number = int(problem.split("engine.max_num_seqs=")[1])
    for sequences, fits in ((number, True), (number + 1, False)):
        other, its_plan = planned(*overrides, f"engine.max_num_seqs={sequences}", hf_config=hf_config, world_size=1)
        assert (memory_problems(other, its_plan, hf_config=hf_config) == []) == fits


def test_where_nothing_fits_the_largest_kind_is_named():
    hf_config = published_config("32b")
    request, plan = planned(*LARGE, hf_config=hf_config, world_size=1, memory=24.0)
    assert smallest_layout(request, hf_config=hf_config) is None
    (problem,) = memory_problems(request, plan, hf_config=hf_config)
    assert "of it optimizer: no layout" in problem and "more replicas" in problem


def test_a_job_that_fits_has_no_problems():
    hf_config = published_config("2b")
    request, plan = planned(*LARGE, hf_config=hf_config, world_size=1)
    assert memory_problems(request, plan, hf_config=hf_config) == []


@pytest.mark.parametrize(
    ("overrides", "options", "expected"),
    [
        (["actor.tensor_parallel=2"], {"world_size": 4, "gpus_per_node": 1}, "got 2 groups of 2 across nodes of 1"),
        (["actor.tensor_parallel=2"], {"world_size": 2}, "got actor.sequence_parallel=false"),
        ([], {"world_size": 12, "gpus_per_node": 8}, "got 4 GPUs idle: start a multiple of 8"),
        (["actor.pipeline_parallel=2", "actor.micro_batch_tokens=8192"], {"world_size": 2}, "with tied embeddings"),
        (["data.num_questions_per_step=33"], {"world_size": 2}, "got 33 over 2"),
        (["data.num_questions_per_step=2"], {"world_size": 2}, "got 1 prefixes for 2 replicas"),
        ([], {"world_size": 2}, "replicas can share the optimizer's state"),
        (["actor.recompute=selective"], {"world_size": 1}, "recomputing attention alone frees nothing"),
    ],
)
def test_warnings(overrides, options, expected):
    hf_config = tiny_config(tied=True, layers=4)
    request, plan = planned(*overrides, "actor.num_minibatches=1", hf_config=hf_config, **options)
    assert any(expected in warning for warning in warnings_of(request, plan))


def test_a_pipeline_with_few_micro_batches_waits():
    # One micro-batch on two stages: each waits half of the time.
    hf_config = tiny_config(layers=4)
    overrides = ["actor.pipeline_parallel=2", "actor.micro_batch_tokens=100000", "actor.num_minibatches=1"]
    request, plan = planned(*overrides, hf_config=hf_config, world_size=2)
    (warning,) = (w for w in warnings_of(request, plan) if "pipeline stages" in w)
    assert "got 50% with 1 micro-batches on 2 stages" in warning
    request, plan = planned("actor.pipeline_parallel=2", "actor.micro_batch_tokens=150", "actor.num_minibatches=1",
                            hf_config=hf_config, world_size=2)  # fmt: skip
    assert not any("pipeline stages" in warning for warning in warnings_of(request, plan))


def test_one_rank_of_a_small_model_has_no_warnings():
    request, plan = planned(hf_config=tiny_config(), world_size=1)
    assert warnings_of(request, plan) == []
