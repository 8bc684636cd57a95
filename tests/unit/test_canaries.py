"""Canaries on the real engine and actor: healthy ones pass, and each way in which a run goes blind is noticed."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from nemo_axpo import assembly
from nemo_axpo.canaries.checks import Check, canary_dtype, describe, require, run_checks
from nemo_axpo.canaries.doctor import run_doctor
from nemo_axpo.canaries.probes import IMAGE, TEXT, TOOL_IMAGE, TOP_K, TOP_P, sample_probes
from nemo_axpo.canaries.rewards import NUM_QUESTIONS
from nemo_axpo.canaries.run import run_canaries
from nemo_axpo.config.load import load_config
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.errors import CanaryError
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.rewards.exact_match import ExactMatch
from nemo_axpo.types import Completion, Message, Question, TextPart
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
    assert list(checks) == [
        *(f"parity, {m}" for m in (TEXT, IMAGE, TOOL_IMAGE)),
        *(f"{kind}, {m}" for kind in ("sight", "placeholders") for m in (IMAGE, TOOL_IMAGE)),
        *(f"renormalised, {kind}" for kind in (TOP_K, TOP_P)),
        "version",
        "tool tokens",
    ]
    assert not failed(checks) and checks["placeholders, image"].value == 0 and checks["tool tokens"].value == 1
    assert all(check.value < 1e-5 for name, check in checks.items() if name.startswith("parity"))
    require(tuple(checks.values()))


def test_an_engine_with_other_weights_is_noticed(config, bench, actor, engine):
    engine.load_weights(((name, tensor * 1.05) for name, tensor in actor.hf_tensors()), policy_version=0)
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
    engine.load_weights(disturbed, policy_version=0)
    assert failed(measure(config, bench, actor, engine)) == {f"parity, {m}" for m in (IMAGE, TOOL_IMAGE)}


def test_a_blind_model_is_noticed(config, bench, actor, engine):
    """Trainer and engine agree perfectly on a model whose vision tower says nothing."""
    vision = ("visual.merger.linear_fc2.", "visual.deepstack_merger_list.0.linear_fc2.")
    parameters = [p for n, p in actor._model.named_parameters() if n.startswith(vision)]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data.zero_()
        engine.load_weights(actor.hf_tensors(), policy_version=0)
        checks = measure(config, bench, actor, engine)
    finally:
        for parameter, values in zip(parameters, before):
            parameter.data.copy_(values)
    assert parameters and failed(checks) == {f"sight, {m}" for m in (IMAGE, TOOL_IMAGE)}
    with pytest.raises(CanaryError, match="the picture does not reach the model"):
        require(tuple(checks.values()))


class Wrapped:
    """The real engine behind one that changes requests or answers, as a server with settings of its own does."""

    def __init__(self, engine, *, request=lambda request: request, completion=lambda completion: completion):
        self._engine, self._request, self._completion = engine, request, completion

    async def generate(self, request):
        return self._completion(await self._engine.generate(self._request(request)))


def test_an_engine_that_cuts_the_distribution_is_noticed(config, bench, actor, engine):
    """A server that takes top_k from the checkpoint's generation_config.json: its log-probs are renormalised, ours not."""

    def default_top_k(request):
        sampling = request.sampling
        return replace(request, sampling=replace(sampling, top_k=sampling.top_k or 20))

    checks = measure(config, bench, actor, Wrapped(engine, request=default_top_k))
    assert failed(checks) == {f"parity, {m}" for m in (TEXT, IMAGE, TOOL_IMAGE)}
    with pytest.raises(CanaryError, match="samples from the whole distribution"):
        require(tuple(checks.values()))


@pytest.mark.parametrize(("ignored", "check"), [("top_k", TOP_K), ("top_p", TOP_P)])
def test_an_engine_whose_logprobs_are_not_renormalised_is_noticed(config, bench, actor, engine, ignored, check):
    def ignore(request):
        return replace(request, sampling=replace(request.sampling, **{ignored: {"top_k": 0, "top_p": 1.0}[ignored]}))

    checks = measure(config, bench, actor, Wrapped(engine, request=ignore))
    assert failed(checks) == {f"renormalised, {check}"} and checks[f"renormalised, {check}"].value > 1
    with pytest.raises(CanaryError, match="log-prob is 0 within 0.0001; got .* on replica 0: .*processed_logprobs"):
        require(tuple(checks.values()))


def test_an_engine_with_another_version_is_noticed(config, bench, actor, engine):
    engine.load_weights(actor.hf_tensors(), policy_version=7)
    checks = measure(config, bench, actor, engine)
    assert failed(checks) == {"version"} and checks["version"].value == 3
    with pytest.raises(CanaryError, match="0 may carry another; got 3 on replica 0: a server has other weights"):
        require(tuple(checks.values()))


def test_a_prompt_with_too_few_placeholders_is_noticed(config, bench, engine):
    """Engines refuse it before they sample; where one does not, the check does."""

    class Short:
        special, tokenizer = bench.renderer.special, bench.renderer.tokenizer

        def prompt(self, question):
            prompt, pad = bench.renderer.prompt(question), self.special.image_pad
            ids = list(prompt.token_ids)
            if pad in ids:
                ids.remove(pad)
            return replace(prompt, token_ids=tuple(ids))

        observation = bench.renderer.observation

    (question,) = assembly.build_questions(config, stream="canary", seed=0, images=bench.images).take(0, 1)
    options = {"renderer": Short(), "image_store": bench.images, "num_tokens": 2, "temperature": 1.0, "name": "c"}
    with pytest.raises(ValueError, match="expand the placeholders"):
        asyncio.run(sample_probes(engine, question, **options))
    probes = asyncio.run(sample_probes(Careless(), question, **options))
    found, expected = probes.num_placeholders[IMAGE]
    assert found == expected - 1 and probes.num_placeholders[TOOL_IMAGE] == (expected, expected)
    scores = {row.rollout_id: row.engine_logprobs for row in probes.samples}
    checks = {check.name: check for check in checks_of(probes, scores, tokenizer=bench.renderer.tokenizer)}
    assert not checks["placeholders, image"].passed and checks["placeholders, tool image"].passed
    with pytest.raises(CanaryError, match="one placeholder per image token.*got 1 on replica 3: .*take both from one"):
        require((checks["placeholders, image"],))


class Careless:
    """Serves anything."""

    async def generate(self, request):
        return Completion((1, 2), (-1.0, -2.0), "length", 0)


def checks_of(probes, logprobs, *, tokenizer):
    return run_checks(probes, logprobs, dtype="float32", replica=3, policy_version=0, tokenizer=tokenizer)


def test_tool_tokens_that_split_are_noticed(bench, engine):
    class Splitting:
        def encode(self, text, *, add_special_tokens):
            return [7, 8] if text == "</tool_call>" else [7]

    probes = asyncio.run(
        sample_probes(
            engine, Question("q", (Message("user", (TextPart("row 1?"),)),), "red", "world"), renderer=bench.renderer,
            image_store=bench.images, num_tokens=2, temperature=1.0, name="c",
        )
    )  # fmt: skip
    scores = {row.rollout_id: row.engine_logprobs for row in probes.samples}
    checks = {check.name: check for check in checks_of(probes, scores, tokenizer=Splitting())}
    assert checks["tool tokens"].value == 2
    with pytest.raises(CanaryError, match="must be 1 token each; got 2 on replica 3: use a Qwen3-VL tokenizer"):
        require((checks["tool tokens"],))


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
    checks = {check.name: check for check in checks_of(probes, shifted, tokenizer=bench.renderer.tokenizer)}
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
    num_rewards = 2 * NUM_QUESTIONS + len(ExactMatch.known_answers)
    assert len(checks) == 11 and out.getvalue().count(" ok ") == 11 + num_rewards
    assert "sight, tool image" in out.getvalue()
