"""Every part is what the config's words and numbers say, and a wrong word is refused with its cure."""

from __future__ import annotations

import asyncio
import sys

import pytest
import torch
from small_runs import small_config

from nemo_axpo import assembly
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.grpo import Grpo
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.engines.registry import create_engine
from nemo_axpo.errors import ConfigError, MissingExtraError
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint
from nemo_axpo.tools.agent_prompt import agent_instructions
from nemo_axpo.types import GenerationRequest, RolloutStatus, SamplingParams, TrainingSample

ANYTHING = {
    "hf_config": None, "checkpoint": "nowhere", "image_store": None, "stop_token_ids": (), "banned_token_ids": (),
    "max_num_seqs": 1, "max_model_len": 2,
}  # fmt: skip


@pytest.fixture(name="build")
def build_fixture(tmp_path, tiny_checkpoint):
    """A config with these overrides, and its workbench."""

    def build(*overrides):
        config = small_config(*overrides, output_dir=tmp_path, checkpoint=tiny_checkpoint)
        return config, assembly.build_workbench(config, checkpoint=tiny_checkpoint)

    return build


def loaded_engine(config, bench):
    engine = assembly.build_engine(config, bench=bench)
    engine.load_weights(read_checkpoint(bench.checkpoint), policy_version=4)
    return engine


# ----------------------------------------------------------------------------------------------------------- workbench
def test_the_prompt_offers_the_tools_of_the_config(build):
    for overrides, is_offered in (([], True), (["tools.names=[]"], False)):
        config, bench = build(*overrides)
        stream = assembly.build_questions(config, stream="train", seed=0, images=bench.images)
        prompt = bench.renderer.prompt(stream.take(0, 1)[0])
        assert ("image_zoom_in" in bench.renderer.decode(prompt.token_ids)) is is_offered


def test_the_agents_instructions_stand_in_the_system_turn_with_tools_and_without(build):
    corpus = ["tools.search.backend=corpus", "tools.search.corpus=pages.jsonl", "tools.names=[image_zoom_in]"]
    for overrides, has_tools in ((["tools=agent", *corpus], True), (["tools=none"], False)):
        config, bench = build(*overrides)
        stream = assembly.build_questions(config, stream="train", seed=0, images=bench.images)
        system, _, rest = bench.renderer.decode(bench.renderer.prompt(stream.take(0, 1)[0]).token_ids).partition(
            "<|im_end|>"
        )
        expected = agent_instructions(config.tools.names)
        assert system.startswith(f"<|im_start|>system\n{expected}") and "boxed" not in rest
        assert ("<tools>" in system) is ("image_zoom_in:" in system) is has_tools


def test_image_pads_and_padded_vocabulary_are_banned(build):
    _, bench = build()
    tokenizer, text = bench.renderer.tokenizer, bench.hf_config.text_config
    banned = set(bench.banned_token_ids)
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") in banned
    assert banned >= set(range(len(tokenizer), text.vocab_size))
    assert not banned & {tokenizer.convert_tokens_to_ids(token) for token in ("<think>", "<tool_call>", "<|im_end|>")}


def test_an_unknown_tool(build):
    with pytest.raises(
        ValueError, match=r"tools.names may hold image_zoom_in, python, .*; got 'search': correct the name"
    ):
        build("tools.names=[search]")


# ----------------------------------------------------------------------------------------------------------- questions
def test_streams_part_by_name_and_seed_alone(build):
    config, bench = build()

    def ask(stream, seed):
        questions = assembly.build_questions(config, stream=stream, seed=seed, images=bench.images).take(3, 4)
        return [question.image_ids for question in questions]

    assert ask("train", 0) == ask("train", 0)
    assert ask("train", 0) != ask("eval", 0) and ask("train", 0) != ask("train", 1)


def test_the_style_of_the_world_reaches_the_pictures(build):
    pictures = set()
    for override in ("world.dots=0.5", "world.dots=0.25", "world.tint=0.125", "world.daylight=4.0"):
        config, bench = build(override)
        stream = assembly.build_questions(config, stream="train", seed=0, images=bench.images)
        pictures.add(stream.take(0, 1)[0].image_ids)
    assert len(pictures) == 4


def test_an_unknown_source(build):
    with pytest.raises(ConfigError, match="data.name: input should be 'world', .* or 'files'; got 'pictures'"):
        build("data.name=pictures")


# ------------------------------------------------------------------------------------------------- engine and rollouts
def test_the_engine_keeps_the_configs_limits(build):
    config, bench = build("engine.max_model_len=100", "rollout.max_row_tokens=100")
    prompt = assembly.build_questions(config, stream="train", seed=0, images=bench.images).take(0, 1)[0]
    request = GenerationRequest("r", bench.renderer.prompt(prompt), SamplingParams(90), seed=0)

    async def ask():
        engine = loaded_engine(config, bench)
        try:
            return await engine.generate(request)
        finally:
            await engine.close()

    with pytest.raises(ValueError, match=r"prompt \+ max_new_tokens must fit max_model_len 100, got .* \+ 90"):
        asyncio.run(ask())


def test_an_engine_that_does_not_exist():
    with pytest.raises(ValueError, match="engine must be one of hf, vllm, vllm_server, trtllm; got 'sglang'"):
        create_engine("sglang", **ANYTHING)


def test_an_engine_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"vllm.*pip install 'nemo_axpo\[vllm\]'"):
        create_engine("vllm", **ANYTHING)


def test_servers_are_dealt_to_the_replicas_in_turn(build, monkeypatch):
    urls = [f"http://host:{port}" for port in range(8000, 8005)]
    config, _ = build(
        "engine.name=trtllm", f"engine.servers=[{','.join(urls)}]", "engine.max_retries=7", "engine.served_model=policy"
    )
    monkeypatch.setenv("NEMO_AXPO_SERVER_CONTROL_KEY", "secret")
    first, second = (
        assembly.server_options(config, replicas=OneProcess(index=index, count=2, is_leader=True, is_main=False))
        for index in range(2)
    )
    assert (first.urls, second.urls) == (tuple(urls[::2]), tuple(urls[1::2]))
    assert (first.settings.max_retries, first.served_model, first.control_key) == (7, "policy", "secret")
    assert "secret" not in repr(first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_trtllm_needs_a_gpu_to_hand_weights_over(build):
    config, bench = build("engine.name=trtllm", "engine.servers=[http://127.0.0.1:9]")
    with pytest.raises(ConfigError, match="hands weights over in GPU memory.*no visible GPU.*engine.name=vllm_server"):
        assembly.build_engine(config, bench=bench)


def test_rollouts_keep_the_configs_limits_and_policy_version(build):
    config, bench = build("rollout.max_new_tokens=3")

    async def roll():
        engine = loaded_engine(config, bench)
        producer = assembly.build_producer(config, bench=bench, engine=engine, temperature=1.0)
        questions = assembly.build_questions(config, stream="train", seed=0, images=bench.images).take(0, 2)
        try:
            return await producer.run_rollouts(questions, num_rollouts=2, seed=0)
        finally:
            await engine.close()

    rollouts = asyncio.run(roll())
    assert len(rollouts) == 4
    for rollout in rollouts:
        (completion,) = (turn.completion for turn in rollout.turns)
        assert len(completion.token_ids) == 3 and completion.policy_version == 4
        assert rollout.status is RolloutStatus.TOKEN_LIMIT and rollout.reward == 0.0


def test_verifiers_know_the_world(build):
    config, bench = build()
    stream = assembly.build_questions(config, stream="train", seed=0, images=bench.images)
    asyncio.run(bench.verifiers.check(stream.take(0, 3)))


# --------------------------------------------------------------------------------------------------- algorithm and loss
def test_algorithms_are_one_word_apart(build):
    axpo = (
        "algorithm=axpo", "algorithm.num_rollouts=4", "algorithm.num_continuations=3", "algorithm.resample_ratio=0.5",
    )  # fmt: skip
    config, _ = build("data.num_questions_per_step=6", *axpo)
    assert assembly.build_algorithm(config) == Axpo(
        num_questions=6, num_rollouts=4, num_continuations=3, resample_ratio=0.5
    )
    config, _ = build("algorithm=grpo", "algorithm.num_rollouts=4", "data.num_questions_per_step=6")
    assert assembly.build_algorithm(config) == Grpo(num_questions=6, num_rollouts=4)


def test_loss_and_optimizers_take_their_sections(build):
    config, _ = build(
        "loss.clip_low=0.1", "loss.clip_high=0.3", "loss.kl_coef=0", "loss.aggregation=sequence_mean",
        "optimizer.lr=0.5", "optimizer.betas=[0.5,0.6]", "optimizer.eps=1e-3", "optimizer.weight_decay=0.25",
        "optimizer.clip_grad=2.0", "optimizer.warmup_steps=7",
        "sft.lr=0.125", "sft.betas=[0.7,0.8]", "sft.weight_decay=0.75", "sft.clip_grad=3.0",
    )  # fmt: skip
    loss = assembly.build_loss(config)
    assert loss == PolicyLoss(clip_low=0.1, clip_high=0.3, kl_coef=0.0, aggregation="sequence_mean")
    assert not loss.needs_reference
    assert assembly.policy_optimizer(config) == AdamSettings(0.5, (0.5, 0.6), 1e-3, 0.25, 2.0)
    assert assembly.warm_start_optimizer(config) == AdamSettings(0.125, (0.7, 0.8), 1e-8, 0.75, 3.0)


# --------------------------------------------------------------------------------------------------------------- actor
def test_the_actor_starts_from_the_checkpoint_and_bans_what_the_engine_bans(build):
    config, bench = build()
    replicas = assembly.build_replicas(config)
    assert replicas == OneProcess()
    actor = assembly.build_actor(
        config, bench=bench, optimizer=assembly.policy_optimizer(config), keep_reference=False, seed=0
    )
    ours, theirs = dict(actor.hf_tensors()), dict(read_checkpoint(bench.checkpoint))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    banned = bench.banned_token_ids[0]
    logprobs = [actor.logprobs([sample_ending_in(token)])[0][-1].item() for token in (banned, 5)]
    assert logprobs[0] < -1e29 and logprobs[1] > -20


def sample_ending_in(token):
    """A row of text whose last token alone is trained."""
    return TrainingSample(
        rollout_id="r", question_id="q", token_ids=(3, 4, token), loss_mask=(False, False, True),
        advantages=(0.0,) * 3, engine_logprobs=(0.0,) * 3, image_ids=(), temperature=1.0,
    )  # fmt: skip


def test_the_layout_is_the_configs(build):
    config, _ = build("actor.tensor_parallel=2", "actor.pipeline_parallel=3")
    layout = assembly.parallel_layout(config)
    assert (layout.tensor_parallel, layout.pipeline_parallel) == (2, 3)
