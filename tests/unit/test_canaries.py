"""Canaries on the real engine and actor: healthy ones pass, and each way in which a run goes blind is noticed."""

from __future__ import annotations

import asyncio
import io

import pytest
import torch
from rich.console import Console

from nemo_axpo import assembly
from nemo_axpo.canaries.checks import Check, canary_dtype, describe, require, run_checks
from nemo_axpo.canaries.doctor import run_doctor
from nemo_axpo.canaries.probes import IMAGE, TEXT, TOOL_IMAGE, sample_probes
from nemo_axpo.canaries.run import run_canaries
from nemo_axpo.config.load import load_config
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.errors import CanaryError
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.types import Message, Question, TextPart
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(path, tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0)
    return load_config([f"model.path={path}", "loss.kl_coef=0"])


@pytest.fixture(scope="module")
def bench(config):
    return assembly.build_workbench(config, checkpoint=config.model.path)


@pytest.fixture(scope="module")
def actor(config, bench):
    return assembly.build_actor(
        config, bench=bench, optimizer=assembly.policy_optimizer(config), keep_reference=False, seed=0
    )


@pytest.fixture(name="engine")
def engine_fixture(config, bench, actor):
    engine = assembly.build_engine(config, bench=bench)
    engine.load_weights(actor.hf_tensors(), policy_version=0)
    return engine


def measure(config, bench, actor, engine):
    checks = asyncio.run(run_canaries(config, bench=bench, actor=actor, engine=engine, replicas=OneProcess()))
    return {check.name: check for check in checks}


def failed(checks):
    return {name for name, check in checks.items() if not check.passed}


def test_a_healthy_engine_passes(config, bench, actor, engine):
    checks = measure(config, bench, actor, engine)
    assert list(checks) == [f"parity, {m}" for m in (TEXT, IMAGE, TOOL_IMAGE)] + [
        f"sight, {m}" for m in (IMAGE, TOOL_IMAGE)
    ]
    assert not failed(checks)
    assert all(check.value < 1e-5 for name, check in checks.items() if name.startswith("parity"))
    require(tuple(checks.values()))


def test_an_engine_with_other_weights_is_noticed(config, bench, actor, engine):
    engine.load_weights(((name, tensor * 1.05) for name, tensor in actor.hf_tensors()), policy_version=1)
    checks = measure(config, bench, actor, engine)
    assert failed(checks) == {f"parity, {m}" for m in (TEXT, IMAGE, TOOL_IMAGE)}
    with pytest.raises(CanaryError, match=r"parity, text: engine and trainer may differ by 0.0001.*got .*caches reset"):
        require(tuple(checks.values()))


def test_an_engine_that_sees_other_pictures_is_noticed(config, bench, actor, engine):
    """Text stays right: only a check of every modality can tell."""
    disturbed = (
        (name, tensor.flip(0) if name.endswith("visual.merger.linear_fc2.weight") else tensor)
        for name, tensor in actor.hf_tensors()
    )
    engine.load_weights(disturbed, policy_version=1)
    assert failed(measure(config, bench, actor, engine)) == {f"parity, {m}" for m in (IMAGE, TOOL_IMAGE)}


def test_a_blind_model_is_noticed(config, bench, actor, engine):
    """Trainer and engine agree perfectly on a model whose vision tower says nothing."""
    vision = ("visual.merger.linear_fc2.", "visual.deepstack_merger_list.0.linear_fc2.")
    parameters = [p for n, p in actor._model.named_parameters() if n.startswith(vision)]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data.zero_()
        engine.load_weights(actor.hf_tensors(), policy_version=1)
        checks = measure(config, bench, actor, engine)
    finally:
        for parameter, values in zip(parameters, before):
            parameter.data.copy_(values)
    assert parameters and failed(checks) == {f"sight, {m}" for m in (IMAGE, TOOL_IMAGE)}
    with pytest.raises(CanaryError, match="the picture does not reach the model"):
        require(tuple(checks.values()))


def test_a_question_without_picture_gets_one(bench, actor, engine):
    question = Question("q", (Message("user", (TextPart("colour of the dots in row 1, column 2?"),)),), "red", "world")
    probes = asyncio.run(
        sample_probes(
            engine, question, renderer=bench.renderer, image_store=bench.images, num_tokens=4, temperature=1.0, name="c"
        )
    )
    assert [len(probes.rows[m].image_ids) for m in (TEXT, IMAGE, TOOL_IMAGE)] == [0, 1, 1]
    for modality, blank in probes.blanked.items():
        assert blank.token_ids == probes.rows[modality].token_ids
        assert blank.image_ids != probes.rows[modality].image_ids
    assert all(1 <= sum(row.loss_mask) <= 4 for row in probes.rows.values())


def test_the_mean_is_over_sampled_tokens(bench, engine):
    question = Question("q", (Message("user", (TextPart("row 1, column 2?"),)),), "red", "world")
    probes = asyncio.run(
        sample_probes(
            engine, question, renderer=bench.renderer, image_store=bench.images, num_tokens=4, temperature=1.0, name="c"
        )
    )
    shifted = {
        row.rollout_id: [value + 0.25 * mask for value, mask in zip(row.engine_logprobs, row.loss_mask)]
        for row in probes.samples
    }
    checks = {check.name: check for check in run_checks(probes, shifted, dtype="float32", replica=3)}
    assert checks["parity, text"].value == pytest.approx(0.25) and checks["parity, text"].replica == 3
    assert checks["sight, image"].value == 0.0 and not checks["sight, image"].passed


def test_the_less_exact_dtype_decides():
    assert canary_dtype("float32", "float32") == "float32"
    assert canary_dtype("float32", "bfloat16") == canary_dtype("bfloat16", "float32") == "bfloat16"


def test_a_failed_check_says_rule_value_and_cure():
    text = describe(Check("sight, image", 1, 0.0, 1e-5, False))
    assert "gray picture" in text and "got 0 on replica 1" in text and "vision weights" in text


def test_the_doctor_shows_every_check(config):
    out = io.StringIO()
    torch.manual_seed(0)
    checks = run_doctor(config, console=Console(file=out, width=160))
    assert len(checks) == 5 and out.getvalue().count(" ok ") == 5 and "sight, tool image" in out.getvalue()
