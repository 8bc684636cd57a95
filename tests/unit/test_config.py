"""Loading: groups, overrides, saved configs, and what a user reads when something does not fit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from nemo_axpo.config.load import load_config, load_saved_config, save_config
from nemo_axpo.config.messages import config_fields
from nemo_axpo.config.schema import AxpoConfig, Config, GrpoConfig
from nemo_axpo.errors import ConfigError


def message_of(*overrides, **options):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides, **options)
    return str(caught.value)


def test_grpo_and_axpo_differ_by_one_word():
    axpo, grpo = load_config(), load_config(["algorithm=grpo"])
    assert axpo.algorithm == AxpoConfig(num_rollouts=8, num_continuations=4, resample_ratio=0.25)
    assert grpo.algorithm == GrpoConfig(num_rollouts=8)
    assert axpo.model_dump(exclude={"algorithm"}) == grpo.model_dump(exclude={"algorithm"})


def test_schema_defaults_are_the_papers():
    config = Config()
    assert (config.loss.clip_low, config.loss.clip_high, config.loss.kl_coef) == (0.2, 0.4, 1e-3)
    assert (config.rollout.max_turns, config.rollout.temperature, config.optimizer.lr) == (3, 1.0, 2e-6)


def test_overrides_are_laid_over_the_recipe():
    config = load_config(["train.num_steps=10", "optimizer.lr=1e-3", "algorithm.num_rollouts=10", "tools.names=[a,b]"])
    assert config.train.num_steps == 10
    assert config.optimizer.lr == 1e-3
    assert config.algorithm.num_rollouts == 10
    assert config.tools.names == ("a", "b")


def test_settings_are_never_parsed(tmp_path):
    odd = f"{tmp_path}/a b=c,{{d}}[e]"
    assert load_config(settings={"output_dir": odd}).output_dir == odd


def test_interpolation_sees_defaults():
    config = load_config(["rollout.max_row_tokens=${engine.max_model_len}"])
    assert config.rollout.max_row_tokens == config.engine.max_model_len


def test_a_saved_config_loads_equal(tmp_path):
    config = load_config(["algorithm=grpo", "seed=7", "optimizer.eps=1e-9"])
    save_config(config, tmp_path / "config.yaml")
    assert load_saved_config(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_users_directory_uses_the_shipped_groups(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [{algorithm: grpo}, _self_]\ntrain: {num_steps: 4}\n")
    config = load_config(config_name="mine", config_dir=tmp_path)
    assert (config.algorithm.name, config.train.num_steps) == ("grpo", 4)
    assert load_config(["algorithm=axpo"], config_name="mine", config_dir=tmp_path).algorithm.name == "axpo"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.num_stepz=3", "unknown config key train.num_stepz; got 3: did you mean train.num_steps?"),
        ("num_steps=3", "did you mean train.num_steps or sft.num_steps?"),
        ("wurld.dots=1", "did you mean world?"),
        ("+train.x=3", "unknown config key train.x; got 3: the keys of train are: num_steps, eval_every"),
        ("logging.wandb.projekt=x", "did you mean logging.wandb.project?"),
        ("algorithm=aspo", "algorithm must be one of: axpo, grpo; got aspo"),
        ("algorithm.name=aspo", "'grpo', 'axpo'"),
        ("train.num_steps=0", "train.num_steps: input should be greater than or equal to 1; got 0: the default is 200"),
        ("train.num_steps=many", "train.num_steps: input should be a valid integer"),
        ("optimizer.lr=nan", "optimizer.lr: input should be"),
        ("algorithm.num_rollouts=1", "algorithm.num_rollouts: input should be greater than or equal to 2; got 1"),
        ("loss.aggregation=mean", "'token_mean' or 'sequence_mean'"),
        ("train=3", "train: input should be a valid dictionary"),
        ("train.num_steps=1,2", "one value per key"),
        ("train.num_steps 3", "section.key=value"),
        ("rollout.max_turns=${nowhere.x}", "nowhere"),
    ],
)
def test_the_error_names_key_value_and_cure(override, expected):
    assert expected in message_of(override)


def test_a_key_of_the_other_algorithm_is_refused():
    message = message_of("algorithm=grpo", "algorithm.num_continuations=3")
    assert "unknown config key algorithm.num_continuations; got 3: it belongs to another choice" in message


def test_an_unknown_key_in_a_file_reads_the_same(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {num_stepz: 4}\n")
    assert "did you mean train.num_steps?" in message_of(config_dir=tmp_path)


def test_every_problem_is_reported_at_once():
    message = message_of("train.num_stepz=3", "loss.clip_low=-1")
    assert "train.num_stepz" in message and "loss.clip_low" in message


def test_an_unknown_recipe_names_the_known_ones():
    assert "did you mean config?" in message_of(config_name="confg")


def test_a_broken_saved_config_names_its_file(tmp_path):
    (tmp_path / "config.yaml").write_text("train: [")
    with pytest.raises(ConfigError, match="config.yaml must be a YAML file"):
        load_saved_config(tmp_path / "config.yaml")


def test_a_config_cannot_be_edited():
    with pytest.raises(ValueError, match="frozen"):
        Config().train.num_steps = 3


def test_field_paths_cover_all_choices_of_a_section():
    paths = config_fields()
    assert {"algorithm.num_rollouts", "algorithm.num_continuations", "logging.wandb.enabled"} <= set(paths)


def test_threads_may_load_at_the_same_time():
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda seed: load_config([f"seed={seed}"]), range(12)))
    assert [config.seed for config in loaded] == list(range(12))
