"""Every key of NeMo-Aligner's ``gpt_reinforce_actor.yaml``, with ``reinforce`` renamed: read, repeated, without effect for a
reason, or refused for one. None is passed over."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_axpo.errors import ConfigError
from nemo_axpo.launcher.key_tables import COMPUTED, COPIES, FIXED, REFUSED_SECTIONS, RENAMED, WITHOUT_EFFECT
from nemo_axpo.launcher.nemo_keys import run_from_nemo
from nemo_axpo.launcher.resolvers import register_resolvers
from nemo_axpo.run_directory import changed_keys

GOLDEN = Path(__file__).parent / "golden" / "gpt_reinforce_actor_keys.json"
"""Keys and defaults of the file as it was released."""
FROM_THE_CHECKPOINT = {"model.tensor_model_parallel_size": 1, "model.pipeline_model_parallel_size": 1}
"""What the file refers to, and NeMo takes from the config inside of a .nemo file."""
MIGRATION = {
    "trainer.axpo.max_steps": 100,
    "trainer.axpo.use_absolute_kl": False,
    "trainer.axpo.trt_llm.model_type": None,
    "exp_manager.checkpoint_callback_params.monitor": "step",
    "model.axpo.offload_adam_states": False,
    "model.axpo.sampling_params.end_strings": None,
    "model.optim.sched.name": "WarmupPolicy",
}
"""What else a user changes (docs/aligner.md), beside leaving ``remote_rm`` away."""


@cache
def resolved(*changes):
    """The file's stage, resolved as Hydra resolves it; ``changes``: dotted keys and values."""
    register_resolvers()
    keys = json.loads(GOLDEN.read_text(encoding="utf-8").replace("reinforce", "axpo"))["keys"]
    del keys["defaults"]  # Hydra's own, gone once it has composed
    stage = {}
    for key, value in (FROM_THE_CHECKPOINT | keys | dict(changes)).items():
        put(stage, key, value)
    return OmegaConf.to_container(OmegaConf.create(stage), resolve=True)


def released():
    return deepcopy(resolved())


def migrated():
    """The file after the migration."""
    stage = deepcopy(resolved(*MIGRATION.items()))
    del stage["remote_rm"]
    return stage


def put(stage, key, value):
    *sections, leaf = key.split(".")
    for section in sections:
        stage = stage.setdefault(section, {})
    stage[leaf] = value


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


KEYS = dict(flat(released()))


def refusal(stage):
    """What is said against a stage; empty where it runs."""
    try:
        run_from_nemo(stage)
    except ConfigError as error:
        return str(error)
    return ""


def stands_in(key, names):
    parts = key.split(".")
    return key in names or any(f"{'.'.join(parts[:count])}.*" in names for count in range(1, len(parts)))


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_in_exactly_one_table(key):
    tables = [RENAMED, COMPUTED, COPIES, FIXED, WITHOUT_EFFECT, REFUSED_SECTIONS]
    assert sum(stands_in(key, table) for table in tables) == 1


def test_every_table_gives_its_reasons():
    reasons = [*WITHOUT_EFFECT.values(), *REFUSED_SECTIONS.values(), *COMPUTED.values(), *(r for _, r in FIXED.values())]
    assert all(len(reason.split()) > 1 or reason == "job.max_time" for reason in reasons)


def test_the_released_file_is_refused_with_every_key_at_once_and_why():
    said = refusal(released()).splitlines()
    expected = {
        "remote_rm has no meaning here: verifiers": "remote_rm.pad_to_length",
        "trainer.axpo.use_absolute_kl must be false: the KL term": "got True",
        "trainer.axpo.trt_llm.model_type must be null or qwen3_vl: servers read": "got 'llama'",
        "exp_manager.checkpoint_callback_params.monitor must be step: the newest": "got 'val_rewards'",
        "model.axpo.offload_adam_states must be false: generation servers": "got True",
        "model.axpo.sampling_params.end_strings must be null or [] or": "<|endoftext|>",
    }
    assert len(said) == len(expected)
    for start, rest in expected.items():
        assert any(line.startswith(start) and rest in line for line in said), start


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("trainer.axpo.max_steps", "must be a number of steps; got -1"),
        ("model.optim.sched.name", "constant after its warm-up; got model.optim.sched.name: CosineAnnealing"),
    ],
)
def test_what_is_refused_once_every_key_is_known(key, expected):
    stage = nested(migrated(), key, KEYS[key])
    assert expected in refusal(nested(stage, "trainer.max_steps", stage["trainer"]["axpo"]["max_steps"]))


def nested(stage, key, value):
    changed = deepcopy(stage)
    put(changed, key, value)
    return changed


def test_after_the_migration_it_runs_as_it_says():
    run = run_from_nemo(migrated())
    config = run.config
    assert run.resume and config.engine.name == "trtllm" and config.output_dir == "/results"
    assert (config.job.num_nodes, config.job.gpus_per_node, config.device) == (8, 8, "cuda")
    assert (config.algorithm.num_rollouts, config.data.num_questions_per_step, config.eval.num_questions) == (4, 512, 512)
    assert (config.rollout.max_new_tokens, config.rollout.max_row_tokens, config.actor.num_minibatches) == (2048, 4096, 32)
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.weight_decay) == (9e-7, (0.9, 0.98), 0.1)
    assert (config.optimizer.warmup_steps, config.loss.kl_coef, config.seed) == (10, 0.01, 1234)
    assert (config.train.eval_every, config.train.checkpoint_every, config.train.keep_checkpoints) == (10, 10, 1)


ANOTHER = {
    "trainer.accelerator": "cpu", "trainer.precision": 32, "trainer.max_time": "00:01:00:00", "trainer.max_steps": 7,
    "trainer.axpo.trt_llm.max_input_len": 100, "exp_manager.explicit_log_dir": "/elsewhere",
    "exp_manager.wandb_logger_kwargs.project": "another", "pretrained_checkpoint.restore_from_path": "/models/x",
    "model.optim.name": "adamw", "model.optim.sched.name": "CosineAnnealing", "model.optim.betas": [0.9, 0.95],
    "model.peft.peft_scheme": "lora", "model.global_batch_size": 128, "model.encoder_seq_length": 8192,
    "model.axpo.num_rollout_samples": 1024, "model.axpo.sampling_params.temperature": 0.5, "trainer.axpo.max_steps": 50,
}  # fmt: skip
"""Values other than the default that a key takes; other keys get one by their type."""
DERIVED = {
    "model.encoder_seq_length": ("model.data.seq_length", "model.max_position_embeddings"),
    "model.global_batch_size": ("trainer.axpo.model_gbs",),
    "model.micro_batch_size": ("trainer.axpo.model_mbs",),
    "model.seed": ("trainer.axpo.trt_llm.seed", "model.axpo.trt_llm.seed"),
    "trainer.precision": ("model.precision",),
    "trainer.axpo.gradient_clip_val": ("trainer.gradient_clip_val",),
    "trainer.axpo.trt_llm": ("model.axpo.trt_llm",),
    "trainer.axpo.max_steps": ("trainer.max_steps",),
}
"""Keys that the file itself sets by interpolation."""


def another(key, value):
    if key in ANOTHER:
        return ANOTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    return "another"


@pytest.mark.parametrize("key", KEYS)
def test_another_value_is_read_or_refused_or_without_effect_for_a_reason(key):
    """What a table says of a key is what happens."""
    base = migrated()
    if key == "model.optim.sched.min_lr":  # of a schedule that falls
        base = nested(base, "model.optim.sched.name", "CosineAnnealing")
    if stands_in(key, REFUSED_SECTIONS):
        assert "remote_rm has no meaning here" in refusal(nested(base, key, 1))
        return
    value = dict(flat(base)).get(key)
    stage = nested(base, key, another(key, value))
    for original, copies in DERIVED.items():
        for copy in copies:
            if key == original or key.startswith(f"{original}."):
                stage = nested(stage, copy + key.removeprefix(original), another(key, value))
    if stands_in(key, WITHOUT_EFFECT):
        assert run_from_nemo(stage) == run_from_nemo(base)
    elif stands_in(key, COPIES):
        assert f"{key} is a copy of" in refusal(stage)
    elif stands_in(key, FIXED):
        assert f"{key} must be" in refusal(stage)
    else:
        said = refusal(stage)
        if said:
            assert any(word in said for word in (key, key.rpartition(".")[0])), said
        else:
            before, after = run_from_nemo(base), run_from_nemo(stage)
            assert changed_keys(before.config, after.config) or before.resume != after.resume


@pytest.mark.parametrize("key", ["model.seed.x", "trainer.axpo.max_steps.x", "exp_manager.name.x", "model.precision.x"])
def test_a_key_below_a_known_one_is_unknown(key):
    assert "unknown key of a stage" in refusal(nested(nested(migrated(), key.removesuffix(".x"), {}), key, 1))


def test_enable_chooses_the_servers():
    """With its copy in the model's section, as the file has it."""
    off = nested(nested(migrated(), "trainer.axpo.trt_llm.enable", False), "model.axpo.trt_llm.enable", False)
    assert run_from_nemo(off).config.engine.name == "vllm_server"
    unequal = nested(migrated(), "model.axpo.trt_llm.enable", False)
    assert "model.axpo.trt_llm.enable is a copy of trainer.axpo.trt_llm.enable; got False and True" in refusal(unequal)


def test_the_prompt_limit_is_that_of_whole_rows():
    key = "trainer.axpo.trt_llm.max_input_len"
    assert KEYS[key] == 4096 - 2048
    short = nested(nested(migrated(), key, 1024), "model.axpo.trt_llm.max_input_len", 1024)
    assert f"{key} must be at least model.encoder_seq_length - " in refusal(short) and "1024 < 2048" in refusal(short)
