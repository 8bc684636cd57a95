"""Stages in NeMo's key names become the jobs of the recipes; what cannot be honoured is refused, key by key."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from nemo_axpo.cli import main
from nemo_axpo.config.load import config_directory, load_config
from nemo_axpo.config.messages import config_fields
from nemo_axpo.errors import ConfigError
from nemo_axpo.launcher.key_tables import COMPUTED, FIXED, RENAMED, WITHOUT_EFFECT
from nemo_axpo.launcher.nemo_keys import load_nemo_run, run_from_nemo
from nemo_axpo.launcher.resolvers import register_resolvers
from nemo_axpo.run_directory import changed_keys

STAGES = config_directory() / "axpo" / "qwen3_vl"
SIZES = ("2b", "4b", "8b", "32b")


def loaded(*overrides, size="8b"):
    return load_nemo_run(STAGES / f"{size}.yaml", overrides=overrides)


def message_of(*overrides):
    with pytest.raises(ConfigError) as caught:
        loaded(*overrides)
    return str(caught.value)


def test_a_file_that_is_no_stage_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there are 2b.yaml, 32b.yaml, 4b.yaml, 8b.yaml"):
        load_nemo_run(tmp_path / "9b.yaml")
    (tmp_path / "mine.yaml").write_text("defaults: [_self_]\n")
    with pytest.raises(ConfigError, match="mine.yaml, a recipe: give it as --config-name"):
        load_nemo_run(tmp_path / "mine.yaml")


def test_there_is_a_stage_for_every_size():
    assert sorted(path.stem for path in STAGES.iterdir()) == sorted(SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_a_stage_is_the_job_of_its_recipe(size):
    run, recipe = loaded(size=size), load_config(config_name=f"recipes/axpo_{size}")
    assert run.resume
    assert changed_keys(recipe, run.config) == [
        "actor.transformer_impl: auto -> transformer_engine",
        "engine.max_num_seqs: 2 -> 128",  # of the embedded engine, which neither uses
        f"output_dir: outputs/axpo_{size} -> outputs/axpo_qwen3_vl_{size}/results",
    ]


def test_every_table_names_keys_of_ours_and_no_key_twice():
    assert {target for targets in RENAMED.values() for target in targets} <= set(config_fields())
    tables = [set(RENAMED), set(FIXED), set(WITHOUT_EFFECT), set(COMPUTED)]
    assert sum(map(len, tables)) == len(set.union(*tables))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("trainer.precision=bf16-mixed", "actor.dtype", "bfloat16"),
        ("trainer.max_time=00:03:40:00", "job.max_time", "00:03:40:00"),
        ("exp_manager.max_time_per_run=00:03:40:00", "job.max_time", "00:03:40:00"),
        ("trainer.axpo.trt_llm.enable=true", "engine.name", "trtllm"),
        ("model.micro_batch_size=2", "actor.micro_batch_tokens", 40_960),
        ("model.global_batch_size=1024", "actor.num_minibatches", 2),
        ("model.activations_checkpoint_granularity=null", "actor.recompute", "none"),
        ("model.optim.name=fused_adam", "actor.distributed_optimizer", False),
        ("model.context_parallel_size=2", "actor.context_parallel", 2),  # refused later, with the reason
        ("model.peft.peft_scheme=lora", "actor.peft", "lora"),
        ("model.mm_cfg.vision_encoder.freeze=true", "actor.freeze_vision", True),
        ("model.optim.sched=null", "optimizer.lr", 2e-6),
        ("model.axpo.engine.servers=['http://a:8000']", "engine.servers", ("http://a:8000",)),
        ("model.axpo.rollout.max_turns=5", "rollout.max_turns", 5),
        ("model.data.recipe=world", "data.name", "world"),
        ("trainer.axpo.algorithm=axpo", "algorithm.name", "axpo"),
        ("trainer.axpo.aggregation=sequence_mean", "loss.aggregation", "sequence_mean"),
        ("model.fp8=true", "actor.fp8.recipe", "delayed"),
        ("exp_manager.checkpoint_callback_params.save_top_k=3", "train.keep_checkpoints", 3),
        ("pretrained_checkpoint.restore_from_path=/models/x", "model.path", "/models/x"),
    ],
)
def test_a_key_and_its_meaning(override, key, value):
    found = loaded(override).config
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.tensor_model_paralel_size=2", "did you mean model.tensor_model_parallel_size"),
        ("trainer.axpo.lr=2", "unknown key of a stage; got trainer.axpo.lr: 2"),
        ("modle.x=2", "unknown key of a stage; got modle.x: 2"),
        ("model.fp8_marginn=2", "did you mean fp8_margin?"),
        ("trainer.precision=16", "trainer.precision must be one of bf16, bf16-mixed"),
        ("trainer.axpo.max_steps=-1", "must be a number of steps; got -1"),
        ("trainer.max_steps=3", "trainer.max_steps is a copy of trainer.axpo.max_steps; got 3 and 147"),
        (
            "model.optim.sched={name: CosineAnnealing, min_lr: 2e-7}",
            "constant after its warm-up; got model.optim.sched.name",
        ),
        ("model.data.recipe=papper", "model.data.recipe is a file of conf/data; got papper: there: "),
        ("model.axpo.rollout.max_turnz=5", "did you mean rollout.max_turns?"),
        ("model.optim.name=sgd", "model.optim.name must be one of distributed_fused_adam"),
        ("model.global_batch_size=500", "must divide model.axpo.num_rollout_samples x"),
        ("model.megatron_amp_O2=false", "float32 master weights"),
        ("model.axpo.sampling_params.top_p=0.9", "a cut distribution is not the one that is trained; got 0.9"),
        ("model.axpo.sampling_params.use_greedy=1", "use_greedy must be false"),
        ("exp_manager.create_checkpoint_callback=false", "a run always leaves checkpoints"),
        ("exp_manager.checkpoint_callback_params.monitor=val_rewards", "the newest checkpoints are kept"),
        ("model.precision=32", "model.precision is a copy of trainer.precision"),
        ("run.results_dir=${nowhere}", "must be a stage that resolves"),
        ("trainer.max_time=3h", "job.max_time: string should match pattern"),
    ],
)
def test_what_cannot_be_honoured_is_refused(override, expected):
    assert expected in message_of(override)


def test_two_time_limits_must_agree():
    limits = ["trainer.max_time=00:01:00:00", "exp_manager.max_time_per_run=00:02:00:00"]
    assert "are one limit; got 00:01:00:00 and 00:02:00:00" in message_of(*limits)
    assert loaded(limits[0], limits[1].replace("02", "01")).config.job.max_time == "00:01:00:00"


def test_an_empty_stage_is_the_schemas_defaults_on_gpus():
    config = run_from_nemo({}).config
    assert (config.device, config.actor.dtype, config.algorithm.num_rollouts) == ("cuda", "bfloat16", 8)


def test_nemos_resolvers():
    register_resolvers()
    names = {"multiply": 21, "int_div": 2, "subtract": 4, "divide_ceil": 3, "divide_floor": 2}
    for name, value in names.items():
        assert OmegaConf.create({"a": f"${{{name}:7,3}}"}).a == value


def test_the_command_line_takes_a_stage(capsys):
    command = ["plan", "--model-size", "8b", "--nemo-config", str(STAGES / "8b.yaml")]
    assert main([*command, "--gpu-memory", "h100"]) == 0
    assert "8 ranks = TP 4 × PP 1 × DP 2" in capsys.readouterr().out
    assert main([*command, "--config-name", "recipes/axpo_8b"]) == 2
    assert "--nemo-config takes the place of a recipe" in capsys.readouterr().err


def test_grpo_is_a_stage_without_the_keys_of_axpo():
    grpo = {"axpo": {"algorithm": "grpo", "num_rollouts_per_prompt": 4, "num_continuations": 4, "resample_ratio": 0.5}}
    assert run_from_nemo({"trainer": grpo}).config.algorithm.num_rollouts == 4


def test_cosine_annealing_to_its_own_rate_is_constant():
    sched = {"name": "CosineAnnealing", "min_lr": 2e-6, "warmup_steps": 3}
    config = run_from_nemo({"model": {"optim": {"lr": 2e-6, "sched": sched}}}).config
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (2e-6, 3)
