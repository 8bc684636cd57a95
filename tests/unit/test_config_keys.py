"""`nemo-axpo keys`: every key with its values, default and meaning, from the schema itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_axpo.cli import main
from nemo_axpo.config.key_list import matching, section_docs
from nemo_axpo.config.messages import config_fields, sections_of
from nemo_axpo.config.schema import Config
from nemo_axpo.launcher.cluster import ClusterConfig
from nemo_axpo.launcher.kubernetes_cluster import KubernetesConfig
from nemo_axpo.launcher.nemo_key_list import nemo_key_docs

ROOT = Path(__file__).parents[2]
STAGES = [*(ROOT / "conf" / "axpo").rglob("*.yaml"), *(ROOT / "nemo_axpo" / "aligner" / "conf").glob("*.yaml")]
MEANINGS = {key.key: key for section in section_docs(Config) for key in section.keys}


def leaves(values, prefix=""):
    for name, value in values.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]


@pytest.mark.parametrize("model", [Config, ClusterConfig, KubernetesConfig])
def test_every_key_says_what_it_means(model):
    sections = section_docs(model)
    assert [section.name for section in sections if not section.meaning] == []
    assert [key.key for section in sections for key in section.keys if not key.meaning] == []


def test_every_key_of_the_schema_is_listed():
    leafs = {path for path, field in config_fields().items() if not sections_of(field)}
    assert leafs <= {key.replace("[]", "").replace(".NAME", "") for key in MEANINGS}


@pytest.mark.parametrize(
    ("key", "values", "default"),
    [
        ("engine.name", "hf | vllm | vllm_server | trtllm", "hf"),
        ("algorithm.name", "grpo | axpo", "axpo"),
        ("algorithm.num_rollouts", "integer ≥ 2", "8"),
        ("data.held_out", "number ≥ 0 < 1", "0.02"),
        ("data.files[].path", "text", "required"),
        ("actor.virtual_pipeline", "integer ≥ 1 | null", "null"),
        ("actor.sequence_parallel", "true | false", "false"),
        ("optimizer.betas", "[number ≥ 0 < 1, number ≥ 0 < 1]", "[0.9, 0.999]"),
        ("tools.limits.NAME.timeout_s", "number > 0 | null", "null"),
        ("rewards.judge.body", "{text: anything}", "{}"),
    ],
)
def test_values_and_defaults_in_words(key, values, default):
    assert (MEANINGS[key].values, MEANINGS[key].default) == (values, default)


def test_a_key_of_one_choice_says_so():
    assert MEANINGS["algorithm.num_continuations"].meaning.endswith("Of axpo alone.")
    assert "alone" not in MEANINGS["algorithm.num_rollouts"].meaning


def test_a_pattern_is_part_of_a_key_or_with_a_star_all_of_it_or_else_part_of_a_meaning():
    sections = section_docs(Config)

    def keys(pattern):
        return [key.key for section in matching(sections, pattern) for key in section.keys]

    assert keys("TENSOR_P") == ["actor.tensor_parallel"] == keys("actor.ten*")
    assert "loss.kl_coef" in keys("reference policy") and keys("no such thing") == []


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_every_key_of_a_stage_in_nemos_names_is_explained(path):
    explained = {key.key for section in nemo_key_docs() for key in section.keys}
    sections = tuple(key.removesuffix("*") for key in explained if key.endswith(".*"))
    stage = leaves(OmegaConf.to_container(OmegaConf.load(path)))
    assert [key for key in stage if key not in explained and not key.startswith(sections)] == []


def test_the_command_prints_them(capsys):
    assert main(["keys", "micro_batch"]) == 0
    said = capsys.readouterr().out
    assert "actor: How the policy is trained.\n  actor.micro_batch_tokens = 32768  (integer ≥ 1)\n" in said
    assert main(["keys", "--cluster", "signal"]) == 0 and "signal_before_s = 900" in capsys.readouterr().out
    assert main(["keys", "--kubernetes", "shm"]) == 0 and "shm_size = 512Gi" in capsys.readouterr().out
    assert main(["keys", "--nemo", "restore_from"]) == 0 and "model.path" in capsys.readouterr().out


def test_a_pattern_that_nothing_fits_is_an_error(capsys):
    assert main(["keys", "qqq"]) == 2
    assert "PATTERN must be part of a key or of its meaning; got qqq" in capsys.readouterr().err
