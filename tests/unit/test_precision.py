"""FP8 from config to megatron's configuration, what cannot work, and NeMo's old keys."""

from __future__ import annotations

import logging

import pytest
import torch
from megatron.core.enums import Fp8Recipe
from tiny_qwen3_vl import tiny_config

from nemo_axpo.actors import precision
from nemo_axpo.actors.precision import Fp8Settings, LayerSettings
from nemo_axpo.config.checks import check_config, config_problems, layer_settings
from nemo_axpo.config.load import load_config, validate_config
from nemo_axpo.config.nemo_precision import fp8_from_nemo
from nemo_axpo.config.schema import Fp8Config
from nemo_axpo.errors import ConfigError, MissingExtraError
from nemo_axpo.models.qwen3_vl.config import transformer_config

ON_GPU = ("device=cuda", "actor.dtype=bfloat16")


@pytest.fixture
def has_engine(monkeypatch):
    """A machine on which Transformer Engine can be found."""
    monkeypatch.setattr(precision, "has_extra", lambda name: True)
    monkeypatch.setattr(precision, "require_extra", lambda name: None)


def test_every_field_reaches_megatrons_configuration():
    settings = Fp8Settings(
        recipe="delayed", format="e4m3", margin=2, amax_history_len=16, amax_compute_algo="most_recent", wgrad=False
    )
    config = transformer_config(tiny_config(), dtype=torch.bfloat16, **settings.transformer_fields())
    assert (config.fp8, config.fp8_recipe, config.fp8_margin) == ("e4m3", Fp8Recipe.delayed, 2)
    assert (config.fp8_amax_history_len, config.fp8_amax_compute_algo) == (16, "most_recent")
    assert (config.fp8_wgrad, config.fp8_param, config.first_last_layers_bf16) == (False, False, False)


def test_replicas_do_not_wait_for_each_others_maxima():
    """Delayed scaling exchanges maxima after every pass; a replica with fewer micro-batches would leave the others waiting."""
    assert transformer_config(
        tiny_config(), dtype=torch.bfloat16, **Fp8Settings().transformer_fields()
    ).tp_only_amax_red


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
def test_first_and_last_layers_in_bf16(recipe):
    from megatron.core.fp8_utils import is_first_last_bf16_layer

    settings = Fp8Settings(
        recipe=recipe, first_last_layers_bf16=True, num_layers_at_start_in_bf16=1, num_layers_at_end_in_bf16=2
    )
    config = transformer_config(tiny_config(layers=6), dtype=torch.bfloat16, **settings.transformer_fields())
    assert [is_first_last_bf16_layer(config, number) for number in range(6)] == [True, False, False, False, True, True]


def test_the_schema_has_the_settings_fields_and_defaults():
    schema = Fp8Config().model_dump()
    settings = vars(Fp8Settings())
    assert schema.pop("recipe") is None and settings.pop("recipe") == "delayed"
    assert schema == settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": "mxfp8"}, "fp8.recipe must be one of: delayed, tensorwise, blockwise; got 'mxfp8'"),
        ({"format": "e5m2"}, "fp8.format must be one of: e4m3, hybrid; got 'e5m2'"),
        ({"amax_compute_algo": "mean"}, "fp8.amax_compute_algo must be one of: max, most_recent; got 'mean'"),
        ({"first_last_layers_bf16": True}, "got fp8.recipe=delayed: use tensorwise or blockwise"),
    ],
)
def test_recipes_that_do_not_exist(fields, message):
    with pytest.raises(ValueError, match=message):
        Fp8Settings(**fields)


@pytest.mark.parametrize(
    ("impl", "device", "dtype", "installed", "chosen"),
    [
        ("auto", "cpu", "bfloat16", True, "local"),
        ("auto", "cuda", "bfloat16", True, "transformer_engine"),
        ("auto", "cuda", "float32", True, "local"),
        ("auto", "cuda", "bfloat16", False, "local"),
        ("local", "cuda", "bfloat16", True, "local"),
        ("transformer_engine", "cuda", "float32", True, "transformer_engine"),
    ],
)
def test_what_the_layers_are_built_of_is_said_in_the_log(monkeypatch, caplog, impl, device, dtype, installed, chosen):
    monkeypatch.setattr(precision, "has_extra", lambda name: installed)
    monkeypatch.setattr(precision, "require_extra", lambda name: None)
    with caplog.at_level(logging.INFO):
        fields = LayerSettings(impl).transformer_fields(device, dtype=dtype)
    assert fields == {"transformer_impl": chosen}
    assert f"decoder layers and norms: {chosen} (transformer_impl={impl})" in caplog.text


def test_fp8_chooses_transformer_engine(has_engine, caplog):
    settings = LayerSettings("auto", Fp8Settings(recipe="tensorwise"))
    with caplog.at_level(logging.INFO):
        fields = settings.transformer_fields("cuda", dtype="bfloat16")
    assert (fields["transformer_impl"], fields["fp8"], fields["fp8_recipe"]) == (
        "transformer_engine",
        "hybrid",
        "tensorwise",
    )
    assert "FP8 tensorwise hybrid" in caplog.text


@pytest.mark.parametrize(
    ("settings", "device", "dtype", "message"),
    [
        (LayerSettings("transformer_engine"), "cpu", "float32", "transformer_impl=transformer_engine needs a CUDA device"),
        (LayerSettings("auto", Fp8Settings()), "cpu", "bfloat16", "fp8 needs a CUDA device; got device=cpu: set device=cuda"),
        (LayerSettings("local", Fp8Settings()), "cuda", "bfloat16", "fp8 needs Transformer Engine's layers"),
        (LayerSettings("auto", Fp8Settings()), "cuda", "float32", "got dtype=float32: set dtype=bfloat16"),
    ],
)  # fmt: skip
def test_what_cannot_work(has_engine, settings, device, dtype, message):
    with pytest.raises(ValueError, match=message):
        settings.transformer_fields(device, dtype=dtype)


def test_without_the_package_the_install_line_is_said():
    with pytest.raises(MissingExtraError, match=r"pip install 'nemo_axpo\[te\]'"):
        LayerSettings("auto", Fp8Settings()).transformer_fields("cuda", dtype="bfloat16")
    config = load_config([*ON_GPU, "actor.fp8.recipe=delayed"])
    assert config_problems(config, world_size=1) == []  # the config itself is right, this machine is not
    with pytest.raises(ConfigError, match=r"need the package transformer_engine; got it is not installed: pip install"):
        check_config(config)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["actor.fp8.recipe=delayed"], "actor: fp8 needs a CUDA device"),
        ([*ON_GPU, "actor.fp8.recipe=delayed", "actor.dtype=float32"], "actor: fp8 rounds products of bf16"),
        (
            [*ON_GPU, "actor.fp8.recipe=delayed", "actor.transformer_impl=local"],
            "actor: fp8 needs Transformer Engine's",
        ),
        ([*ON_GPU, "actor.fp8.recipe=delayed", "actor.fp8.first_last_layers_bf16=true"], "use tensorwise or blockwise"),
    ],
)
def test_the_config_is_judged_before_the_run(overrides, problem):
    (found,) = config_problems(load_config(overrides), world_size=1)
    assert problem in found


def test_products_that_fp8_cannot_cut_are_refused():
    fields = {"dtype": torch.bfloat16, **Fp8Settings().transformer_fields()}
    transformer_config(tiny_config(), **fields)  # 32 · (64 + 2 · 32) and 48: multiples of 16
    message = "the MLP's width on a rank must be a multiple of 16 for fp8; got 24: use a smaller tensor_parallel"
    with pytest.raises(ValueError, match=message):
        transformer_config(tiny_config(), tensor_parallel=2, **fields)
    transformer_config(tiny_config(), tensor_parallel=2, dtype=torch.bfloat16)


def test_a_misspelt_recipe_is_an_error_of_the_schema():
    with pytest.raises(ConfigError, match="actor.fp8.recipe"):
        load_config(["actor.fp8.recipe=delay"])


def test_nemos_keys_by_hand():
    keys = {
        "transformer_engine": True, "fp8": True, "fp8_e4m3": False, "fp8_hybrid": True, "fp8_margin": 1,
        "fp8_interval": 1, "fp8_amax_history_len": 512, "fp8_amax_compute_algo": "most_recent", "fp8_params": False,
        "reduce_amax": True, "use_te_rng_tracker": True, "ub_tp_comm_overlap": False,
    }  # fmt: skip
    actor = fp8_from_nemo(keys)
    assert actor == {
        "transformer_impl": "transformer_engine",
        "fp8": {
            "recipe": "delayed", "format": "hybrid", "margin": 1, "amax_history_len": 512,
            "amax_compute_algo": "most_recent",
        },
    }  # fmt: skip
    config = validate_config({"device": "cuda", "actor": {"dtype": "bfloat16", **actor}})
    assert layer_settings(config).fp8 == Fp8Settings("delayed", "hybrid", 1, 512, "most_recent")
    assert config_problems(config, world_size=1) == []


@pytest.mark.parametrize(
    ("keys", "impl", "recipe"),
    [
        ({}, "auto", None),
        ({"transformer_engine": False}, "local", None),
        ({"transformer_engine": True}, "transformer_engine", None),
        # NeMo's file has fp8_hybrid: true and a history beside fp8: false.
        ({"transformer_engine": True, "fp8": False, "fp8_hybrid": True, "fp8_amax_history_len": 1024},
         "transformer_engine", None),
        ({"fp8": True, "fp8_e4m3": True}, "transformer_engine", "delayed"),
        ({"fp8": True, "fp8_e4m3": True, "fp8_recipe": "blockwise"}, "transformer_engine", "blockwise"),
    ],
)  # fmt: skip
def test_what_nemos_switches_mean(keys, impl, recipe):
    actor = fp8_from_nemo(keys)
    assert (actor["transformer_impl"], actor["fp8"]["recipe"]) == (impl, recipe)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fp8": True}, "exactly one of fp8_e4m3 and fp8_hybrid; got neither: set one"),
        ({"fp8": True, "fp8_e4m3": True, "fp8_hybrid": True}, "got fp8_e4m3 and fp8_hybrid"),
        ({"fp8": True, "fp8_hybrid": True, "transformer_engine": False}, "set both, or neither"),
        ({"fp8_interval": 4}, "fp8_interval can only be 1: .*got 4: set it to 1, or remove it"),
        ({"reduce_amax": False}, "reduce_amax can only be true"),
        ({"fp8_params": True}, "fp8_params can only be false: weights are kept in bf16"),
        ({"ub_tp_comm_overlap": True}, "ub_tp_comm_overlap can only be false"),
        ({"fp8_amax_histroy_len": 4}, "unknown precision key of NeMo; .*did you mean fp8_amax_history_len"),
        ({"megatron_amp_O2": True}, "unknown precision key of NeMo; .*known are"),
    ],
)
def test_nemos_keys_that_contradict_or_have_no_counterpart(keys, message):
    with pytest.raises(ConfigError, match=message):
        fp8_from_nemo(keys)
