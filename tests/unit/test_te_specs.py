"""Layers on Transformer Engine, which is not installed here: its names, both ways, by test doubles with its parameters."""

from __future__ import annotations

import inspect

import pytest
import torch
from meta_ranks import fake_rank, meta_stage
from te_doubles import PARTS, NormLinearDouble
from tiny_qwen3_vl import BANNED, RandomImages, mixed_samples, save_checkpoint, tiny_config

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.actors.precision import LayerSettings
from nemo_axpo.errors import MissingExtraError
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.models.qwen3_vl import quantization, te_specs
from nemo_axpo.models.qwen3_vl.attention import PackedAttention
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.hf_mapping import global_parameters, placements
from nemo_axpo.models.qwen3_vl.layer_specs import SwiGLU, block_spec
from nemo_axpo.plan.published import published_config
from nemo_axpo.types import TrainBatch

TE = {"transformer_impl": "transformer_engine"}


@pytest.fixture
def doubles(monkeypatch):
    """Transformer Engine's place is taken by the doubles."""
    monkeypatch.setattr(te_specs, "transformer_engine_parts", lambda: PARTS)


@pytest.fixture
def engine_layers(doubles, monkeypatch):
    """Settings that choose the layers without asking for CUDA."""
    monkeypatch.setattr(LayerSettings, "transformer_fields", lambda self, device, *, dtype: TE)


def build(path) -> Actor:
    settings = AdamSettings(1e-2, eps=1e-2)
    return Actor(path, image_store=RandomImages(), banned_token_ids=BANNED, optimizer=settings)


def test_without_the_package_the_install_line_is_said():
    with fake_rank(0, tensor_parallel_size=1, pipeline_parallel_size=1), pytest.raises(
        MissingExtraError, match=r"transformer_engine, which is not installed: pip install 'nemo_axpo\[te\]"
    ):
        block_spec(transformer_config(tiny_config(), **TE))


def test_the_parameters_of_a_fused_layer(doubles):
    with fake_rank(0, tensor_parallel_size=1, pipeline_parallel_size=1):
        model = meta_stage(tiny_config(), **TE)
    names = {name.removeprefix("decoder.layers.1."): tuple(p.shape) for name, p in model.named_parameters()
             if name.startswith("decoder.layers.1.")}  # fmt: skip
    assert names == {
        "self_attention.linear_qkv.layer_norm_weight": (32,),
        "self_attention.linear_qkv.weight": ((4 + 2 + 2) * 16, 32),
        "self_attention.q_layernorm.weight": (16,),
        "self_attention.k_layernorm.weight": (16,),
        "self_attention.linear_proj.weight": (32, 64),
        "mlp.linear_fc1.layer_norm_weight": (32,),
        "mlp.linear_fc1.weight": (96, 32),
        "mlp.linear_fc2.weight": (32, 48),
    }
    assert global_parameters(model).keys() == {placement.name for placement in placements(tiny_config())}


@pytest.mark.parametrize(("tensor_parallel", "pipeline_parallel"), [(1, 1), (2, 2), (8, 4)])
@pytest.mark.parametrize("size", ["2b", "8b"])
def test_published_sizes_have_one_place_for_every_tensor(doubles, size, tensor_parallel, pipeline_parallel):
    config, held = published_config(size), []
    by_name = {placement.name: placement for placement in placements(config)}
    for stage in range(pipeline_parallel):
        layout = {"tensor_parallel_size": tensor_parallel, "pipeline_parallel_size": pipeline_parallel}
        with fake_rank(stage * tensor_parallel, **layout):
            parameters = global_parameters(meta_stage(config, **TE))
        if size == "2b" and stage == pipeline_parallel - 1 > 0:
            parameters.pop("output_layer.weight")  # the copy of the tied embedding
        for name, parameter in parameters.items():
            assert parameter.numel() == torch.Size(by_name[name].local_shape(size=tensor_parallel)).numel(), name
        held += parameters
    assert sorted(held) == sorted(by_name)


def test_names_go_both_ways():
    fused = "decoder.layers.11.self_attention.linear_qkv.layer_norm_weight"
    assert te_specs.plain_name(fused) == "decoder.layers.11.input_layernorm.weight"
    assert te_specs.plain_name("decoder.layers.0.mlp.linear_fc1.layer_norm_weight") == (
        "decoder.layers.0.pre_mlp_layernorm.weight"
    )
    for placement in placements(tiny_config()):
        assert te_specs.plain_name(te_specs.fused_name(placement.name)) == placement.name
    assert te_specs.fused_name("decoder.final_layernorm.weight") == "decoder.final_layernorm.weight"


def test_the_names_are_megatrons_own():
    from megatron.core.extensions import transformer_engine as wrappers
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    theirs = get_gpt_layer_local_spec(normalization="RMSNorm").submodules.sharded_state_dict_keys_map
    assert {fused: plain for plain, fused in theirs.items()} == te_specs.FUSED_NAMES
    source = inspect.getsource(wrappers.split_te_layernorm_column_parallel_linear)
    assert "fused_layer.layer_norm_weight" in source and "fused_layer.weight" in source


def test_the_double_takes_what_megatron_gives_the_real_one():
    source = inspect.getsource(__import__("megatron.core.extensions.transformer_engine", fromlist=["_"]))
    arguments = source.split("class TELayerNormColumnParallelLinear")[1].split("def __init__(")[1].split("):")[0]
    real = {line.split(":")[0].strip() for line in arguments.splitlines() if ":" in line} - {"self"}
    assert {"input_size", "output_size", "config", "tp_comm_buffer_name", "tp_group", "skip_bias_add"} <= real
    accepted = inspect.signature(NormLinearDouble.__mro__[1].__init__).parameters
    assert real - {"input_size", "output_size", "config"} <= set(accepted)


def test_the_core_attention_is_a_parameter_of_the_spec():
    class Other(PackedAttention):
        pass

    with fake_rank(0, tensor_parallel_size=1, pipeline_parallel_size=1):
        config = transformer_config(tiny_config())
        fused = te_specs.te_block_spec(config, core_attention=Other, activation=SwiGLU, parts=PARTS)
        local = block_spec(config, core_attention=Other)
    for spec in (fused, local):
        assert [layer.submodules.self_attention.submodules.core_attention for layer in spec.layer_specs] == [Other] * 3


def test_fused_layers_score_train_and_export_as_the_local_ones(tmp_path, engine_layers, monkeypatch):
    expected = save_checkpoint(tmp_path).state_dict()
    samples, fused = mixed_samples(), build(tmp_path)
    assert isinstance(fused._model.decoder.layers[0].mlp.linear_fc1, NormLinearDouble)
    monkeypatch.undo()
    local = build(tmp_path)
    assert not isinstance(local._model.decoder.layers[0].mlp.linear_fc1, NormLinearDouble)
    for name, tensor in fused.hf_tensors():
        assert torch.equal(tensor, expected[name]), name
    for ours, theirs in zip(fused.logprobs(samples), local.logprobs(samples), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    batch = TrainBatch(tuple(samples), num_planned_rollouts=6)
    assert fused.update(batch, loss=PolicyLoss()) == pytest.approx(
        local.update(batch, loss=PolicyLoss()), rel=1e-5, abs=1e-6
    )
    theirs = dict(local.hf_tensors())
    for name, tensor in fused.hf_tensors():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=0)
    assert fused.sharded_state(is_loading=False).keys() == local.sharded_state(is_loading=False).keys()


def test_tokens_are_padded_to_what_fp8_and_sequence_parallelism_need():
    config = tiny_config()
    config.text_config.intermediate_size = 64  # half of it is a multiple of 16, as fp8 asks

    def multiple(**fields):
        return quantization.token_multiple(transformer_config(config, dtype=torch.bfloat16, **fields))

    assert multiple() == 1
    assert multiple(tensor_parallel=2) == 1
    assert multiple(tensor_parallel=2, sequence_parallel=True) == 2
    assert multiple(fp8="hybrid", fp8_recipe="tensorwise") == 16
    assert multiple(fp8="hybrid", fp8_recipe="tensorwise", tensor_parallel=2, sequence_parallel=True) == 32


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_delayed_scaling_surrounds_the_block_and_the_other_recipes_each_layer(monkeypatch, recipe):
    asked = []
    monkeypatch.setattr(quantization, "get_fp8_context", lambda config, *layer: asked.append(layer))
    config = transformer_config(tiny_config(), dtype=torch.bfloat16, fp8="hybrid", fp8_recipe=recipe)
    quantization.block_context(config)
    for number in (1, 2, 3):
        quantization.layer_context(config, number)
    assert asked == ([()] if recipe == "delayed" else [(0,), (1,), (2,)])


def test_a_quantised_parameter_leaves_in_high_precision(monkeypatch):
    values = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    parameter = torch.nn.Parameter(values.clone())
    assert quantization.high_precision(parameter).dtype is torch.bfloat16
    monkeypatch.setattr(quantization, "is_float8tensor", lambda tensor: True)
    monkeypatch.setattr(quantization, "dequantize_fp8_tensor", lambda tensor: tensor * 2)
    assert torch.equal(quantization.high_precision(parameter), values * 2)
