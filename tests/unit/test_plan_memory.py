"""Memory by kind: by hand, and against the tensors of a real actor and a real engine."""

from __future__ import annotations

import pytest
import torch
from plan_measures import held_bytes
from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples, save_checkpoint, tiny_config

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.config.load import load_config
from nemo_axpo.config.schema import EngineConfig
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.plan.activations import MicrobatchShape
from nemo_axpo.plan.batch import step_arithmetic
from nemo_axpo.plan.engine import engine_memory
from nemo_axpo.plan.memory import logit_bytes, optimizer_bytes
from nemo_axpo.plan.parameters import whole_model
from nemo_axpo.plan.plan import Machine, PlanRequest, make_plan
from nemo_axpo.plan.settings import TrainerSettings
from nemo_axpo.plan.sizes import model_sizes
from nemo_axpo.types import TrainBatch

SIZES = model_sizes(tiny_config(layers=4))


def plan_of(*overrides, world_size=1, sizes=SIZES, image_share=0.5):
    return make_plan(PlanRequest(load_config(overrides), sizes, Machine(world_size), image_share))


def settings(**changes) -> TrainerSettings:
    values = {"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1, "value_bytes": 2}
    return TrainerSettings(**{**values, "micro_batch_tokens": 1024, **changes})


def test_the_optimizer_by_hand():
    assert optimizer_bytes(1000, settings=settings(value_bytes=4)) == 8000  # two moments
    assert optimizer_bytes(1000, settings=settings()) == 12_000  # and master weights
    assert optimizer_bytes(1000, settings=settings(data_parallel=4)) == 12_000
    assert (
        optimizer_bytes(1000, settings=settings(data_parallel=4, memory=MemorySettings(distributed_optimizer=True)))
        == 3000
    )
    offloaded = MemorySettings(distributed_optimizer=True, offload_optimizer=True)
    assert optimizer_bytes(1000, settings=settings(memory=offloaded)) == 0


def test_weights_reference_and_gradients_by_hand():
    number = whole_model(SIZES).total
    (stage,) = plan_of("actor.dtype=bfloat16").stages
    assert (stage.memory.weights, stage.memory.reference, stage.memory.gradients) == (
        2 * number,
        2 * number,
        4 * number,
    )
    (without,) = plan_of("loss.kl_coef=0").stages
    assert (without.memory.weights, without.memory.reference) == (4 * number, 0)


def test_fp8_copies_by_hand():
    overrides = ["device=cuda", "actor.dtype=bfloat16", "actor.fp8.recipe=blockwise"]
    (stage,) = plan_of(*overrides).stages
    assert stage.memory.fp8_weights == 2 * 2 * whole_model(SIZES).language
    without = plan_of(*overrides, "loss.kl_coef=0").stages[0].memory
    assert without.fp8_weights == 2 * whole_model(SIZES).language
    assert without.held == without.weights + without.fp8_weights + without.gradients + without.optimizer + (
        without.engine_weights + without.engine_cache
    )


def test_servers_take_no_memory_of_the_trainer():
    (colocated,), (served,) = plan_of().stages, plan_of("engine=trtllm", "engine.servers=[http://a:1]").stages
    assert (served.memory.engine_weights, served.memory.engine_cache) == (0, 0)
    held = colocated.memory.engine_weights + colocated.memory.engine_cache
    assert colocated.memory.total - served.memory.total == pytest.approx(held) and held > 0


def test_micro_batches_in_flight_under_1f1b():
    # Three micro-batches on two stages: the first holds two of them at the same time, the last one.
    overrides = ["actor.pipeline_parallel=2", "data.num_questions_per_step=1", "algorithm=grpo",
                 "algorithm.num_rollouts=3", "actor.micro_batch_tokens=150", "actor.num_minibatches=1"]  # fmt: skip
    plan = plan_of(*overrides, world_size=2, image_share=0.0)
    assert plan.step.num_microbatches == 3
    first, last = (stage.memory for stage in plan.stages)
    assert first.activations_language == pytest.approx(2 * last.activations_language, rel=0.1)
    hidden = 150 * 4 * 32
    assert (first.communication, last.communication) == (3 * hidden, 2 * hidden)
    assert plan.step.bubble(2) == 1 / 4
    assert first.logits == 0 < last.logits


def test_logits_by_hand():
    # 8 rollouts of 100 tokens, 20 of them sampled in each of 2 turns: 320 trained tokens in a micro-batch of 800.
    overrides = ["algorithm=grpo", "data.num_questions_per_step=1", "rollout.max_row_tokens=100",
                 "rollout.max_new_tokens=20", "rollout.max_turns=2", "actor.micro_batch_tokens=800",
                 "actor.num_minibatches=1"]  # fmt: skip
    plan = plan_of(*overrides)
    assert plan.step.microbatch == MicrobatchShape(num_tokens=800, num_image_tokens=400, num_loss_tokens=320)
    assert plan.stages[0].memory.logits == 320 * 96 * (4 + 4 + 4 + 4)


def test_logits_of_chunks_by_hand():
    # A vocabulary of 96 on two ranks: 48 columns, hidden size 32; bf16.
    halves = {"tensor_parallel": 2}
    whole = settings(**halves)
    assert logit_bytes(SIZES, settings=whole, num_loss_tokens=10) == 10 * 48 * (4 + 4 + 4 + 2)  # the forward pass
    assert logit_bytes(SIZES, settings=whole, num_loss_tokens=2) == 2 * 48 * (2 + 2) + 48 * 32 * 2  # the backward pass
    chunked = MemorySettings(logprob_chunk_tokens=4)
    in_bf16 = logit_bytes(SIZES, settings=settings(**halves, memory=chunked), num_loss_tokens=10)
    assert in_bf16 == 4 * 48 * (4 + 2) + 48 * 32 * 2
    in_float32 = logit_bytes(SIZES, settings=settings(**halves, memory=chunked, value_bytes=4), num_loss_tokens=10)
    assert in_float32 == 4 * 48 * 12
    default_chunk = 2**27 // 48  # 2^27 logits
    assert logit_bytes(SIZES, settings=whole, num_loss_tokens=default_chunk + 1) == default_chunk * 48 * 12


def test_the_arithmetic_of_a_step_by_hand():
    # B 32, N 8, r 0.25, K 4: floor(64 / 4) = 16 prefixes, 64 continuations, 320 rows. Two replicas and four optimizer
    # steps: 40 rows each, 5 to a micro-batch of 800 tokens.
    overrides = ["rollout.max_row_tokens=150", "actor.micro_batch_tokens=800", "actor.num_minibatches=4"]
    step = step_arithmetic(load_config(overrides), data_parallel=2, image_share=0.25)
    assert (step.num_rollouts, step.num_prefixes, step.num_continuations, step.num_rows) == (256, 16, 64, 320)
    assert (step.num_tokens, step.rows_per_microbatch, step.num_microbatches) == (48_000, 5, 8)
    # Three turns of 32 new tokens are at most 96 of a row's 150.
    assert step.microbatch == MicrobatchShape(num_tokens=800, num_image_tokens=200, num_loss_tokens=512)
    grpo = step_arithmetic(load_config(["algorithm=grpo"]), data_parallel=1, image_share=0.0)
    assert (grpo.num_prefixes, grpo.num_continuations, grpo.num_rows) == (0, 0, 256)


def test_the_peak_is_the_larger_of_the_passes_and_the_optimizer_step():
    (stage,) = plan_of("actor.micro_batch_tokens=192", "actor.num_minibatches=1").stages
    memory = stage.memory
    assert 0 < memory.workspace < memory.logits
    passing = memory.activations_language + memory.activations_vision + memory.logits
    assert memory.total == memory.held + memory.inputs + max(passing, memory.after_backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_real_actor_holds_after_a_step(tmp_path, dtype):
    save_checkpoint(tmp_path)
    actor = Actor(
        tmp_path, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=AdamSettings(1e-3), dtype=dtype
    )
    actor.update(TrainBatch(tuple(mixed_samples()), num_planned_rollouts=6), loss=PolicyLoss())
    (stage,) = plan_of(f"actor.dtype={str(dtype).split('.')[1]}", sizes=model_sizes(actor.hf_config)).stages
    memory = stage.memory
    assert held_bytes(actor) == {
        name: getattr(memory, name) for name in ("weights", "reference", "gradients", "optimizer")
    }


def test_what_a_real_engine_holds():
    hf_config = tiny_config(layers=4)
    config = EngineConfig(max_num_seqs=3, max_model_len=40)
    engine = HfEngine(
        hf_config, image_store=RandomImages(), stop_token_ids=(1,), banned_token_ids=BANNED, max_num_seqs=3,
        max_model_len=40,
    )  # fmt: skip
    expected = engine_memory(config, sizes=model_sizes(hf_config))
    assert engine._cache._kv.numel() * 4 == expected.cache == 3 * expected.cache_per_sequence
    storages = {destination.target.untyped_storage() for destination in engine._loader._destinations.values()}
    distinct = {storage.data_ptr(): storage.nbytes() for storage in storages}
    # Norms of queries and keys are stored for every head there.
    num_repeated = 4 * ((4 + 2) * 16 - 2 * 16)
    assert sum(distinct.values()) == expected.weights + 4 * num_repeated
