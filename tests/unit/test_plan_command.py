"""``nemo-axpo plan`` as a user and as a script calls it."""

from __future__ import annotations

import json

import pytest
from tiny_qwen3_vl import tiny_config

from nemo_axpo.cli import main
from nemo_axpo.errors import ConfigError
from nemo_axpo.plan.command import gpu_memory_gib
from nemo_axpo.plan.parameters import whole_model
from nemo_axpo.plan.sizes import model_sizes


@pytest.fixture
def checkpoint(tmp_path):
    tiny_config(layers=4).save_pretrained(tmp_path)
    return f"model.path={tmp_path}"


def test_a_job_that_fits(checkpoint, capsys):
    arguments = ["--world-size", "4", "actor.tensor_parallel=2", "actor.pipeline_parallel=2"]
    assert main(["plan", checkpoint, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "4 ranks = TP 2 × PP 2 × DP 1, 1 node of 8 GPUs" in printed
    assert f"{whole_model(model_sizes(tiny_config(layers=4))).total:,}" in printed
    assert "The job fits." in printed and "warning: with tensor parallelism" in printed


def test_json_holds_what_the_tables_say(checkpoint, capsys):
    assert main(["plan", checkpoint, "--world-size", "2", "--json", "actor.pipeline_parallel=2"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] and values["problems"] == []
    assert [rank["pp_rank"] for rank in values["layout"]["ranks"]] == [0, 1]
    assert values["peak_bytes"] == max(stage["total"] for stage in values["stages"])
    weights = [stage["memory"]["weights"] for stage in values["stages"]]
    assert sum(weights) == 4 * values["parameters"]["total"]


def test_a_job_that_cannot_run_is_a_user_error_with_its_cure(checkpoint, capsys):
    assert main(["plan", checkpoint, "--world-size", "4", "actor.tensor_parallel=4"]) == 2
    assert "a layout that fits: actor.tensor_parallel=1" in capsys.readouterr().err
    assert main(["plan", checkpoint, "--json", "--world-size", "4", "actor.tensor_parallel=4"]) == 2
    values = json.loads(capsys.readouterr().out)
    assert not values["fits"] and "stages" not in values


def test_a_job_that_does_not_fit_still_shows_its_tables(capsys):
    arguments = ["--model-size", "8b", "--gpu-memory", "h100", "actor.dtype=bfloat16"]
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert "8,767,123,696" in captured.out and "optimizer" in captured.out and "The job fits" not in captured.out
    assert "a rank must fit 76.6 GiB" in captured.err


def test_the_tiny_model_needs_no_checkpoint(capsys):
    assert main(["plan"]) == 0
    assert "MiB" in capsys.readouterr().out


def test_a_job_on_gpus_is_not_planned_with_the_tiny_model(capsys):
    assert main(["plan", "--config-name", "recipes/axpo_8b"]) == 2
    assert "needs its model; got model.path: null: --model-size 2b|4b|8b|32b" in capsys.readouterr().err


def test_the_stage_is_that_of_the_recipes_name(capsys):
    assert main(["plan", "--config-name", "recipes/sft_2b", "--model-size", "2b"]) == 0
    assert "rollouts" not in capsys.readouterr().out
    assert main(["plan", "--config-name", "recipes/eval_8b", "--model-size", "8b"]) == 0
    printed = capsys.readouterr().out
    assert "8 × 1" in printed and "The job fits." in printed and "gradients" not in printed


def test_an_evaluation_is_planned_by_its_servers(capsys):
    words = ["plan", "--config-name", "recipes/eval_32b", "--model-size", "32b", "--json"]
    assert main(words) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] and (values["servers"]["count"], values["servers"]["gpus_each"]) == (4, 2)
    assert main([*words, "job.servers.gpus_each=1"]) == 2
    assert "62.1 GiB of weights a GPU" in capsys.readouterr().err
    assert main(["plan", "--stage", "eval"]) == 2
    assert "use one of recipes/eval_*" in capsys.readouterr().err


def test_gpus_by_name_and_by_size():
    assert (gpu_memory_gib("H200"), gpu_memory_gib("h100"), gpu_memory_gib("24")) == (140.4, 79.6, 24.0)
    for wrong in ("h900", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match="--gpu-memory is GiB or one of: a100-40gb, a100, h100, h200"):
            gpu_memory_gib(wrong)


@pytest.mark.parametrize(
    ("option", "value"), [("--world-size", "0"), ("--gpus-per-node", "0"), ("--reserve", "99"), ("--image-share", "2")]
)
def test_impossible_assumptions(option, value, capsys):
    assert main(["plan", option, value]) == 2
    assert f"{option} must lie in" in capsys.readouterr().err
