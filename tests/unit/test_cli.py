"""The command line: what reaches the implementations, and which errors are the user's."""

from __future__ import annotations

import logging
import sys
import types

import pytest

from nemo_axpo import cli
from nemo_axpo.cli import main
from nemo_axpo.config.load import load_config, save_config


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the implementations; each call is recorded as (name, arguments, options)."""
    recorded = []

    def stand_in(module, function):
        def record(*arguments, **options):
            recorded.append((function, arguments, options))
            return types.SimpleNamespace(html="report.html")

        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{function: record}))

    stand_in("nemo_axpo.train", "run_training")
    stand_in("nemo_axpo.sft", "run_sft")
    stand_in("nemo_axpo.eval.command", "run_eval")
    stand_in("nemo_axpo.export", "export_checkpoint")
    stand_in("nemo_axpo.report.command", "build_report")
    stand_in("nemo_axpo.quickstart", "run_quickstart")
    return recorded


@pytest.fixture
def policy(tmp_path):
    """A directory that passes for a checkpoint."""
    path = tmp_path / "policy"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def only(calls):
    (call,) = calls
    return call


@pytest.mark.parametrize("command", ["train", "sft", "eval", "doctor", "export", "report", "plan", "quickstart"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"nemo-axpo {command}" in capsys.readouterr().out


def test_train_composes_its_config(calls, policy, tmp_path):
    out = tmp_path / "out dir"
    status = main(["train", "algorithm=grpo", "--output-dir", str(out), f"model.path={policy}", "train.num_steps=3"])
    name, (config,), options = only(calls)
    assert (status, name, options) == (0, "run_training", {"resume": False})
    assert (config.algorithm.name, config.train.num_steps, config.output_dir) == ("grpo", 3, str(out))


def test_resume_with_a_directory_alone_takes_the_runs_config(calls, policy, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    saved = load_config(["algorithm=grpo"], settings={"model.path": str(policy), "output_dir": "elsewhere"})
    save_config(saved, run / "config.yaml")
    assert main(["train", "--resume", "--output-dir", str(run)]) == 0
    _, (config,), options = only(calls)
    assert config == saved.model_copy(update={"output_dir": str(run)}) and options == {"resume": True}


def test_the_other_commands_pass_their_options(calls, policy, tmp_path):
    main(["sft", "sft.num_steps=2"])
    main(["eval", "--checkpoint", str(policy), "--output", "e.json", "eval.num_questions=5"])
    main(["export", "run", "--output", "hf"])
    main(["report", "a", "b", "--output", "c"])
    main(["quickstart", "--smoke", "--seed", "3", "--output-dir", "q", "--tp", "2"])
    sft, evaluation, export, report, quickstart = calls
    assert sft[1][0].sft.num_steps == 2
    config = evaluation[1][0]
    assert (config.model.path, config.eval.num_questions, str(evaluation[2]["output"])) == (str(policy), 5, "e.json")
    assert (str(export[1][0]), str(export[2]["output"])) == ("run", "hf")
    assert ([str(path) for path in report[1][0]], str(report[2]["output"])) == (["a", "b"], "c")
    settings = quickstart[2] | {"output_dir": str(quickstart[2]["output_dir"])}
    assert settings == {"output_dir": "q", "seed": 3, "smoke": True, "device": "cpu", "tensor_parallel": 2}


def test_eval_takes_the_settings_of_a_run(calls, policy, tmp_path):
    save_config(load_config(["algorithm=grpo", "world.tint=0.5"]), tmp_path / "config.yaml")
    main(["eval", "--run", str(tmp_path), "--checkpoint", str(policy), "eval.num_questions=7"])
    config = only(calls)[1][0]
    assert (config.world.tint, config.eval.num_questions, config.model.path) == (0.5, 7, str(policy))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "train.num_stepz=1"], "did you mean train.num_steps?"),
        (["train", "algorithm.num_continuations=99"], "K <= r·B·N; got K=99"),
        (["train"], "model.path must be a Hugging Face checkpoint directory"),
        (["sft", "device=cuda"], "device=cuda needs"),
    ],
)
def test_a_users_error_is_one_message_before_any_work(calls, capsys, monkeypatch, arguments, expected):
    monkeypatch.setattr("nemo_axpo.config.checks._has_cuda", lambda: False)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("nemo-axpo: error: ") and expected in error and "Traceback" not in error
    assert calls == []


def test_traceback_on_request(calls):
    with pytest.raises(ValueError, match="num_stepz"):
        main(["train", "train.num_stepz=1", "--traceback"])


@pytest.mark.parametrize(
    "arguments", [["train", "--outputt", "x"], ["export", "a", "b", "--output", "c"], [], ["trian"]]
)
def test_what_argparse_cannot_read_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage:" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def inside_a_library(*arguments, **options):
        int("x")

    library = types.FunctionType(inside_a_library.__code__, {"__name__": "numpy.core", "int": int})
    monkeypatch.setitem(sys.modules, "nemo_axpo.export", types.SimpleNamespace(export_checkpoint=library))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["export", "a", "--output", "b"])


def test_a_missing_file_and_an_interrupt_need_no_traceback(monkeypatch, capsys):
    def fail(error):
        def function(*arguments, **options):
            raise error

        monkeypatch.setitem(sys.modules, "nemo_axpo.export", types.SimpleNamespace(export_checkpoint=function))
        return main(["export", "a", "--output", "b"])

    assert fail(FileNotFoundError(2, "No such file", "a")) == cli.USER_ERROR
    assert fail(KeyboardInterrupt()) == cli.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "shown"), [("0", ["nemo-axpo: which layers", "nemo-axpo: lost"]), ("1", ["nemo-axpo: lost"])]
)
def test_the_log_is_on_stderr_and_one_rank_tells_all(monkeypatch, capsys, policy, rank, shown):
    def run_training(*_, **__):
        logging.getLogger("nemo_axpo.part").info("which layers")
        logging.getLogger("nemo_axpo.part").warning("lost")

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setitem(sys.modules, "nemo_axpo.train", types.SimpleNamespace(run_training=run_training))
    for _ in range(2):  # a second call shows nothing twice
        assert main(["train", f"model.path={policy}"]) == 0
        assert capsys.readouterr().err.splitlines() == shown


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_layout_that_does_not_divide_the_model_is_refused_before_ranks_meet(
    calls, tmp_path, capsys, monkeypatch, command
):
    from tiny_qwen3_vl import tiny_config

    tiny_config(layers=4).save_pretrained(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")
    settings = [f"model.path={tmp_path}", "--output-dir", str(tmp_path / "run"), "actor.tensor_parallel=4"]
    assert main([command, *settings]) == 2
    assert "num_key_value_heads must be divisible by the ranks that share it; got 2 over 4" in capsys.readouterr().err
    assert not calls
