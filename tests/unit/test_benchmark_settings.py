"""Records of one directory were made under one set of settings."""

from __future__ import annotations

import json
import shutil

import pytest
from small_runs import small_config

from nemo_axpo.config.checks import check_benchmarks
from nemo_axpo.errors import ConfigError, RunDirectoryError
from nemo_axpo.eval.benchmarks.command import num_parameters
from nemo_axpo.eval.benchmarks.definition import Benchmark
from nemo_axpo.eval.benchmarks.settings import asking_settings, fingerprint, fix_settings
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint

BENCHMARK = Benchmark(name="world", path="rows.jsonl", reader="schema", verifiers=("exact_match",), instruction="a word")


@pytest.fixture(name="settings")
def settings_fixture(tmp_path, tiny_checkpoint):
    """Settings of the tiny model under these overrides."""

    def of(*overrides, benchmark=BENCHMARK):
        config = small_config(*overrides, output_dir=tmp_path, checkpoint=tiny_checkpoint)
        return asking_settings(config, benchmark=benchmark)

    return of


def test_the_same_settings_go_on(settings, tmp_path):
    fix_settings(settings(), directory=tmp_path / "world")
    fix_settings(settings("engine.max_num_seqs=7", "benchmarks.max_questions_in_flight=1"), directory=tmp_path / "world")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("benchmarks.presence_penalty=0", "presence_penalty"),
        ("benchmarks.seed=5", "seed"),
        ("tools.names=[]", "tools"),
        ("rewards.sources.world=math", "verifiers"),
        ("rewards.needs_answer_block=false", "needs_answer_block"),
    ],
)
def test_other_settings_are_refused_by_name(settings, tmp_path, change, name):
    fix_settings(settings(), directory=tmp_path)
    with pytest.raises(RunDirectoryError, match=rf"other settings \({name}\); got {name}=.* instead of"):
        fix_settings(settings(change), directory=tmp_path)


def test_another_prompt_is_refused(settings, tmp_path):
    fix_settings(settings(), directory=tmp_path)
    other = BENCHMARK.model_copy(update={"instruction": ""})
    with pytest.raises(RunDirectoryError, match=r"other settings \(instruction\)"):
        fix_settings(settings(benchmark=other), directory=tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="settings.json must be whole"):
        fix_settings({}, directory=tmp_path)


def test_other_weights_under_the_same_path_are_another_checkpoint(tmp_path, tiny_checkpoint):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    assert fingerprint(copy) == fingerprint(tiny_checkpoint)
    (weights,) = copy.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(copy) != fingerprint(tiny_checkpoint)


def test_parameters_are_counted_from_headers(tiny_checkpoint):
    assert num_parameters(tiny_checkpoint) == sum(tensor.numel() for _, tensor in read_checkpoint(tiny_checkpoint))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("benchmarks.max_row_tokens=161",), "must not exceed engine.max_model_len; got 161 > 160"),
        (("benchmarks.max_row_tokens=150", "benchmarks.max_new_tokens=151"), "benchmarks.max_new_tokens must not exceed"),
        (
            ("benchmarks.max_row_tokens=150", "engine=vllm_server", "engine.request_timeout_s=500", "benchmarks.max_time_s=500"),
            "engine.request_timeout_s must be below benchmarks.max_time_s, .*; got 500 >= 500",
        ),
        (("benchmarks.max_row_tokens=150", "engine=trtllm"), "benchmarks.presence_penalty must be 0 for engine.name=trtllm"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_sample(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_benchmarks(small_config(*overrides, output_dir=tmp_path))


def test_the_recipe_of_benchmarks_is_the_paper_s():
    from nemo_axpo.config.load import load_config

    config = load_config(["engine.servers=[http://host:8000]"], config_name="evaluate")
    check_benchmarks(config)
    asked = config.benchmarks
    assert (asked.temperature, asked.top_p, asked.top_k, asked.presence_penalty) == (0.7, 0.8, 20, 1.5)
    assert (asked.num_rollouts, asked.max_turns, asked.max_row_tokens) == (4, 5, 32_768)
    assert config.tools.names == ("python", "image_zoom_in", "tavily-search") and config.tools.instructions == "agent"
    assert json.dumps(config.model_dump(mode="json")["benchmarks"])
