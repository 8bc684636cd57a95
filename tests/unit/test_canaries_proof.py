"""The proof after an update, on the real engine and actor, and every way in which an engine misses one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from nemo_axpo import assembly
from nemo_axpo.canaries import diagnosis
from nemo_axpo.canaries.diagnosis import IMAGE, NEW_PICTURE, NEW_TEXT, OLD_PICTURE, TEXT, name_cause
from nemo_axpo.canaries.proof import Answer, SyncProof, unanswered_move
from nemo_axpo.config.load import load_config
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.engines.base import EngineError
from nemo_axpo.errors import CanaryError
from nemo_axpo.types import TrainingSample

LARGE, SMALL = 0.1, 2e-5
"""Relative changes of every weight: far above the tolerance of parity, and below it."""


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return load_config([f"model.path={tiny_checkpoint}", "loss.kl_coef=0"])


@pytest.fixture(scope="module")
def bench(config):
    return assembly.build_workbench(config, checkpoint=config.model.path)


@pytest.fixture(scope="module")
def built_actor(config, bench):
    return assembly.build_actor(
        config, bench=bench, optimizer=assembly.policy_optimizer(config), keep_reference=False, seed=0
    )


@pytest.fixture(name="actor")
def actor_fixture(built_actor):
    """With the checkpoint's weights, and version 0."""
    before = [parameter.detach().clone() for parameter in built_actor._model.parameters()]
    built_actor.policy_version = 0
    yield built_actor
    for parameter, values in zip(built_actor._model.parameters(), before, strict=True):
        parameter.data.copy_(values)


@pytest.fixture(name="engine")
def engine_fixture(config, bench, actor):
    engine = assembly.build_engine(config, bench=bench)
    engine.load_weights(actor.hf_tensors(), policy_version=0)
    return engine


@pytest.fixture(name="proof")
def proof_fixture(config, bench, actor, engine):
    return SyncProof(config, bench=bench, actor=actor, engine=engine, replicas=OneProcess())


def update(actor, *, size=LARGE):
    """An update of every weight."""
    draw = torch.Generator().manual_seed(actor.policy_version)
    with torch.no_grad():
        for parameter in actor._model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.add_(size * noise * parameter.abs().mean())
    actor.policy_version += 1


def push(actor, engine):
    engine.load_weights(actor.hf_tensors(), policy_version=actor.policy_version)


def prove(proof, bench):
    """As in a step: the images of the one before are forgotten."""
    bench.images.retain(())
    return asyncio.run(proof())


# --------------------------------------------------------------------------------------------------------------- healthy
@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_good_updates_pass_one_after_another(proof, bench, actor, engine, size):
    for _ in range(3):
        update(actor, size=size)
        push(actor, engine)
        assert 0 <= prove(proof, bench) < 1e-5


def test_an_update_that_changed_nothing_passes(proof, bench, actor, engine):
    """A step without a gradient: the engine rightly answers as before."""
    for _ in range(2):
        push(actor, engine)
        assert prove(proof, bench) < 1e-5


# --------------------------------------------------------------------------------------------------------------- broken
def fails(proof, bench, cause):
    with pytest.raises(CanaryError) as caught:
        prove(proof, bench)
    assert cause in str(caught.value) and "replica 0: " in str(caught.value), str(caught.value)
    return str(caught.value)


def test_a_prefix_cache_that_survives_is_named(proof, bench, actor, engine, monkeypatch):
    prove(proof, bench)
    monkeypatch.setattr(engine._cache, "clear", lambda: None)
    monkeypatch.setattr(engine._scheduler, "reset", lambda: None)
    update(actor)
    push(actor, engine)
    message = fails(proof, bench, diagnosis.STALE_PREFIXES)
    assert "after update 1" in message and "parity, text: engine and trainer may differ by 0.0001" in message


def test_an_image_cache_that_survives_is_named(proof, bench, actor, engine, monkeypatch):
    prove(proof, bench)
    monkeypatch.setattr(engine._vision, "clear", lambda: None)
    update(actor)
    push(actor, engine)
    message = fails(proof, bench, diagnosis.STALE_PICTURES)
    assert "parity, image" in message and "parity, text" not in message


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_an_engine_that_keeps_its_weights_is_named(proof, bench, actor, engine, monkeypatch, size):
    """Also where one update moves log-probs by less than engines and trainers differ in rounding."""
    prove(proof, bench)
    monkeypatch.setattr(engine._loader, "load", lambda tensors: [None for _ in tensors])
    update(actor, size=size)
    push(actor, engine)
    message = fails(proof, bench, diagnosis.STALE_WEIGHTS)
    assert "moved, text: where the trainer's log-probs moved by more than 1e-05" in message
    assert ("parity, text" in message) == (size == LARGE)


def test_a_tensor_that_is_left_out_is_named(proof, bench, actor, engine, monkeypatch):
    """As the output projection of vLLM on a CPU."""
    prove(proof, bench)
    kept = engine._loader._destinations["model.language_model.norm.weight"].target
    load, old = engine._loader.load, kept.clone()

    def load_and_restore(tensors):
        load(tensors)
        kept.copy_(old)

    monkeypatch.setattr(engine._loader, "load", load_and_restore)
    update(actor)
    push(actor, engine)
    fails(proof, bench, diagnosis.OTHER_WEIGHTS)


def test_other_vision_weights_are_named(proof, bench, actor, engine):
    prove(proof, bench)
    update(actor)
    disturbed = (
        (name, tensor.flip(0) if name.endswith("visual.merger.linear_fc2.weight") else tensor)
        for name, tensor in actor.hf_tensors()
    )
    engine.load_weights(disturbed, policy_version=1)
    message = fails(proof, bench, diagnosis.OTHER_VISION)
    assert "parity, text" not in message


def test_another_version_is_named(proof, bench, actor, engine):
    engine.load_weights(actor.hf_tensors(), policy_version=8)
    message = fails(proof, bench, diagnosis.OTHER_VERSION)
    assert "version, text" in message and "version, image" in message


class Fleet:
    """Two servers behind one engine, which are embedded engines here."""

    def __init__(self, engines):
        self.engines = engines

    def by_server(self):
        return self.engines


class Down:
    async def generate(self, request):
        raise EngineError("connection refused")


@pytest.fixture(name="servers")
def servers_fixture(config, bench, actor, engine):
    other = assembly.build_engine(config, bench=bench)
    other.load_weights(actor.hf_tensors(), policy_version=0)
    return {"http://a:1": engine, "http://b:1": other}


def fleet_proof(config, bench, actor, servers):
    urls = f"engine.servers=[{','.join(servers)}]"
    settings = load_config([f"model.path={config.model.path}", "loss.kl_coef=0", urls])
    return SyncProof(settings, bench=bench, actor=actor, engine=Fleet(servers), replicas=OneProcess())


def test_every_server_of_a_fleet_must_prove_itself(config, bench, actor, servers, monkeypatch):
    proof = fleet_proof(config, bench, actor, servers)
    assert prove(proof, bench) < 1e-5
    monkeypatch.setattr(servers["http://b:1"]._loader, "load", lambda tensors: [None for _ in tensors])
    update(actor)
    for engine in servers.values():
        push(actor, engine)
    with pytest.raises(CanaryError) as caught:
        prove(proof, bench)
    message = str(caught.value)
    assert f"http://b:1: {diagnosis.STALE_WEIGHTS}" in message and "parity, text on http://b:1: engine and" in message
    assert "http://a:1" not in message


def test_a_server_that_is_down_is_left_out_of_the_proof(config, bench, actor, servers):
    proof = fleet_proof(config, bench, actor, {"http://a:1": Down(), "http://b:1": servers["http://b:1"]})
    assert prove(proof, bench) < 1e-5
    proof = fleet_proof(config, bench, actor, {"http://a:1": Down(), "http://b:1": Down()})
    with pytest.raises(EngineError, match="connection refused"):
        prove(proof, bench)


# ------------------------------------------------------------------------------------------------------------- by hand
@pytest.mark.parametrize(
    ("bad", "failed", "cause"),
    [
        ({TEXT, IMAGE, NEW_TEXT, OLD_PICTURE, NEW_PICTURE}, {"parity", "moved"}, diagnosis.STALE_WEIGHTS),
        (set(), {"moved"}, diagnosis.STALE_WEIGHTS),
        ({TEXT, IMAGE, NEW_TEXT, OLD_PICTURE, NEW_PICTURE}, {"parity"}, diagnosis.OTHER_WEIGHTS),
        ({TEXT, IMAGE}, {"parity"}, diagnosis.STALE_PREFIXES),
        ({IMAGE}, {"parity"}, diagnosis.STALE_PREFIXES),
        ({IMAGE, OLD_PICTURE}, {"parity"}, diagnosis.STALE_PICTURES),
        ({IMAGE, OLD_PICTURE, NEW_PICTURE}, {"parity"}, diagnosis.OTHER_VISION),
        (set(), {"parity"}, diagnosis.NOT_AGAIN),
        (set(), {"version"}, diagnosis.OTHER_VERSION),
    ],
)
def test_what_agrees_names_the_cause(bad, failed, cause):
    assert name_cause(bad, failed=failed) == cause


def answer(engine_logprobs, trainer_logprobs, *, last_token=9):
    row = TrainingSample(
        "r", "r", (5, 7, last_token), (False, True, True), (0.0,) * 3, (0.0, *engine_logprobs), temperature=1.0
    )
    return Answer(row, [0.0, *trainer_logprobs])


def test_a_move_counts_where_the_engine_answers_exactly_as_before():
    before = answer((-1.0, -2.0), (-1.0, -2.0))
    assert unanswered_move(None, before) == 0.0
    assert unanswered_move(before, answer((-1.0, -2.0), (-1.25, -1.5))) == 0.5
    assert unanswered_move(before, answer((-1.0, -2.1), (-1.25, -1.5))) == 0.0
    assert unanswered_move(before, answer((-1.0, -2.0), (-1.25, -1.5), last_token=8)) == 0.0
    assert unanswered_move(before, before) == 0.0


def test_the_version_of_a_row_is_the_completions(proof, bench, actor, engine):
    push(actor, engine)
    prove(proof, bench)
    stale = {key: replace(one, row=replace(one.row, policy_version=3)) for key, one in proof._last.items()}
    failed = [check for check in proof._check(stale) if not check.passed]
    assert [(check.name, check.value) for check in failed] == [("version, text", 1.0), ("version, image", 1.0)]
