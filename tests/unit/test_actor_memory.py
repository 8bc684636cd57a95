"""What saves memory leaves the step as it is: recomputation, sharded optimizer state, a frozen vision tower."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from test_actor import batch_of, build, weights
from tiny_qwen3_vl import mixed_samples, save_checkpoint

from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.models.qwen3_vl.block import recompute_units
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.hf_mapping import global_parameters

RECOMPUTED = {
    "attention": (MemorySettings("selective"), {"core_attention": 2, "mlp": 1, "layer": 1, "vision": 1}),
    "attention and mlp": (
        MemorySettings("selective", ("core_attn", "mlp")),
        {"core_attention": 2, "mlp": 2, "layer": 1, "vision": 1},
    ),
    "every layer": (MemorySettings("full"), {"core_attention": 2, "mlp": 2, "layer": 2, "vision": 2}),
    "layers 0-1 and 2": (
        MemorySettings("full", recompute_num_layers=2),
        {"core_attention": 2, "mlp": 2, "layer": 2, "vision": 2},
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path, tied=True)
    return path


@pytest.fixture(scope="module")
def plain(checkpoint):
    """Metrics, gradients and weights of the step that keeps everything."""
    return trained(build(checkpoint, micro_batch_tokens=60))


def trained(actor) -> tuple[dict, dict, dict]:
    metrics = actor.update(batch_of(mixed_samples()), loss=PolicyLoss())
    gradients = {
        name: parameter.main_grad.clone()
        for name, parameter in global_parameters(actor._model).items()
        if parameter.requires_grad
    }
    return metrics, gradients, weights(actor)


def count_calls(actor) -> Counter:
    """Forward passes of the first layer's parts and the first vision block, per micro-batch."""
    calls, layer = Counter(), actor._model.decoder.layers[0]
    parts = {
        "core_attention": layer.self_attention.core_attention, "mlp": layer.mlp, "layer": layer,
        "vision": actor._model.visual.blocks[0],
    }  # fmt: skip
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputation_runs_parts_twice_and_changes_nothing(checkpoint, plain, name):
    memory, expected = RECOMPUTED[name]
    actor = build(checkpoint, memory=memory)
    calls = count_calls(actor)
    actor.update(batch_of(mixed_samples()[:1]), loss=PolicyLoss(kl_coef=0.0))
    assert dict(calls) == expected
    assert_equal(trained(build(checkpoint, micro_batch_tokens=60, memory=memory)), plain)


@pytest.mark.parametrize("embeddings", ["tied", "untied"])
def test_logits_in_chunks_give_the_same_step(checkpoint, plain, embeddings, tmp_path):
    if embeddings == "untied":
        save_checkpoint(tmp_path)
        checkpoint, plain = tmp_path, trained(build(tmp_path, micro_batch_tokens=60))
    actor = build(checkpoint, micro_batch_tokens=60, memory=MemorySettings(logprob_chunk_tokens=3))
    whole = build(checkpoint).logprobs(mixed_samples())
    for ours, theirs in zip(actor.logprobs(mixed_samples()), whole, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
    metrics, gradients, after = trained(actor)
    assert metrics == pytest.approx(plain[0], rel=1e-5, abs=1e-6)
    for name, gradient in plain[1].items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name
    for name, tensor in plain[2].items():
        assert (after[name] - tensor).abs().max() < 1e-5, name


def test_sharded_optimizer_takes_the_same_step(checkpoint, plain):
    memory = MemorySettings(distributed_optimizer=True)
    assert_equal(trained(build(checkpoint, micro_batch_tokens=60, memory=memory)), plain)


def assert_equal(got: tuple[dict, dict, dict], expected: tuple[dict, dict, dict]) -> None:
    assert got[0] == pytest.approx(expected[0], rel=1e-6)  # the gradient norm is summed in another order
    for ours, theirs in zip(got[1:], expected[1:]):
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert (ours[key] - tensor).abs().max() <= 1e-6 * tensor.abs().max(), key


def test_frozen_vision_tower_stays_and_the_rest_gets_its_gradient(checkpoint, plain):
    actor = build(checkpoint, micro_batch_tokens=60, freeze_vision=True)
    before = weights(actor)
    _, gradients, after = trained(actor)
    assert not any(name.startswith("visual.") for name in gradients)
    for name, gradient in plain[1].items():
        if not name.startswith("visual."):
            scale = gradient.norm() / gradients[name].norm()  # the clipped norm is another one
            assert (gradients[name] * scale - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved and not any(".visual." in name for name in moved)


@pytest.mark.parametrize(
    "memory",
    [
        MemorySettings("full", distributed_optimizer=True, logprob_chunk_tokens=3),
        MemorySettings("selective", ("core_attn", "mlp")),
    ],
    ids=["full", "selective"],
)
def test_a_frozen_tower_with_what_saves_memory_and_a_checkpoint(checkpoint, tmp_path, memory):
    """DeepStack levels then enter recomputed layers without a gradient, and some parameters have no optimizer state."""
    plain, saving = (build(checkpoint, freeze_vision=True, memory=m) for m in (MemorySettings(), memory))
    _, _, expected = trained(plain)
    store = CheckpointStore(tmp_path)
    metrics, _, after = trained(saving)
    assert after.keys() == expected.keys() and metrics["update/num_samples"] == len(mixed_samples())
    for name, tensor in expected.items():
        assert (after[name] - tensor).abs().max() < 1e-6, name
    store.save(1, tensors=saving.sharded_state(), state=saving.state_values())
    resumed, saved = build(checkpoint, freeze_vision=True), store.read()
    resumed.load_state(saved.load_tensors(resumed.sharded_state(is_loading=True)), saved.state)
    (_, _, again), (_, _, straight) = trained(resumed), trained(saving)
    for name, tensor in straight.items():
        assert (again[name] - tensor).abs().max() < 1e-6, name


def test_units_of_recomputation(checkpoint):
    def units(num_layers, **fields):
        config = transformer_config(
            build(checkpoint).hf_config, **MemorySettings("full", **fields).transformer_fields()
        )
        return recompute_units(config, num_layers=num_layers)

    assert units(5, recompute_num_layers=2) == [(0, 2, True), (2, 4, True), (4, 5, True)]
    assert units(3, recompute_method="block", recompute_num_layers=2) == [(0, 1, True), (1, 2, True), (2, 3, False)]
    assert units(1, recompute_method="block", recompute_num_layers=2) == [(0, 1, True), (1, 1, False)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"recompute": "some"}, "recompute must be one of: none, selective, full; got 'some'"),
        ({"recompute_modules": ("layernorm",)}, "recompute_modules must be one of: core_attn, mlp; got 'layernorm'"),
        ({"recompute_num_layers": 0}, "recompute_num_layers must be positive; got 0"),
        ({"logprob_chunk_tokens": 0}, "logprob_chunk_tokens must be positive; got 0"),
        ({"offload_optimizer": True}, "got distributed_optimizer=false: set distributed_optimizer=true"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
        MemorySettings(**arguments)


def test_the_host_is_no_place_to_offload_to_on_a_cpu(checkpoint):
    with pytest.raises(ValueError, match="moves what lies on a GPU to the host; got device=cpu"):
        build(checkpoint, memory=MemorySettings(distributed_optimizer=True, offload_optimizer=True))
