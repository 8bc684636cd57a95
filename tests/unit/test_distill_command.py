"""distill → sft → filter on twelve questions of the embedded world, through the commands; killed and resumed."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from small_runs import small_config

from nemo_axpo.cli import main
from nemo_axpo.distill import attempts
from nemo_axpo.distill.command import run_distill
from nemo_axpo.distill.filter import run_filter
from nemo_axpo.errors import ConfigError, DataError, RunDirectoryError
from nemo_axpo.sft import run_sft
from nemo_axpo.train import run_training

TEACHER = ("distill.teacher=scripted", "world.tool_rate=0.5", "world.aim_rate=0.6", "rollout.max_new_tokens=40")
SFT = ("sft.batch_size=4", "sft.num_epochs=1.5", "sft.warmup_share=0.5", "sft.lr=0.01", "train.checkpoint_async=false")


@pytest.fixture(name="config", scope="module")
def config_fixture(tmp_path_factory):
    """Settings on a file of twelve questions."""
    path = tmp_path_factory.mktemp("world")
    assert main(["world-questions", "--output", str(path / "questions"), "--number", "12"]) == 0
    files = f"data.files=[{{path: {path / 'questions' / 'questions.jsonl'}}}]"
    shared = ("data=files", files, "data.held_out=0", f"data.cache_dir={path / 'cache'}")

    def config(*overrides, output_dir, checkpoint=None):
        return small_config(*shared, *overrides, output_dir=output_dir, checkpoint=checkpoint)

    return config


@pytest.fixture(name="distilled", scope="module")
def distilled_fixture(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("distill") / "run"
    return run_distill(config(*TEACHER, output_dir=path))


def rows(path):
    return pyarrow.parquet.read_table(path / "trajectories.parquet").to_pylist()


def test_the_teachers_right_answers_become_trajectories(distilled):
    report = json.loads((distilled / "report.json").read_text())
    found = list(attempts.read_attempts(distilled))
    assert (report["num_questions"], report["num_rollouts"], len(found)) == (12, 48, 12)
    right = {t.trajectory_id: a for a in found for t in a.trajectories}
    assert len(right) == report["num_right"] == sum(a.num_correct for a in found)
    assert 0 < report["num_right"] < 48  # the teacher errs, and its errors are filtered
    chosen = rows(distilled)
    assert len(chosen) == report["num_trajectories"] and {row["trajectory_id"] for row in chosen} <= set(right)
    assert len({row["question_id"] for row in chosen}) == len(chosen)  # one of a question
    with_tool = sum(row["uses_tool"] for row in chosen)
    assert with_tool == report["num_trajectories_with_tool"] and abs(with_tool - 0.25 * len(chosen)) <= 1


def test_a_killed_command_goes_on_and_writes_the_same(distilled, config, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(distilled, path)
    for name in ("trajectories.parquet", "report.json"):
        (path / name).unlink()
    lines = (path / "attempts.jsonl").read_text().splitlines(keepends=True)
    (path / "attempts.jsonl").write_text("".join(lines[:5]) + lines[5][:100])
    with pytest.raises(RunDirectoryError, match="output_dir already holds attempts.*continue it with --resume"):
        run_distill(config(*TEACHER, output_dir=path))
    run_distill(config(*TEACHER, output_dir=path), resume=True)
    by_id = [{row["trajectory_id"]: row for row in rows(where)} for where in (distilled, path)]
    assert by_id[0] == by_id[1]
    assert json.loads((path / "report.json").read_text()) == json.loads((distilled / "report.json").read_text())


def test_another_share_costs_no_rollout(distilled, config, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(distilled, path)
    before = (path / "attempts.jsonl").read_bytes()
    run_distill(config(*TEACHER, "distill.tool_share=1", output_dir=path), resume=True)
    assert all(row["uses_tool"] for row in rows(path)) and (path / "attempts.jsonl").read_bytes() == before


@pytest.fixture(name="trained", scope="module")
def trained_fixture(distilled, config, tmp_path_factory):
    path = tmp_path_factory.mktemp("sft") / "run"
    run_sft(config(*SFT, f"sft.trajectories=[{distilled}]", output_dir=path))
    return path


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_sft_trains_the_trajectories_model_tokens(distilled, trained):
    chosen, steps = rows(distilled), metrics(trained)
    assert len(steps) == -(-len(chosen) * 3 // 8)  # 1.5 epochs of batches of 4
    # Half of the steps warm up: the first of n/2 has 2/n of the peak, times a cosine that is still 1.
    assert steps[0]["update/lr"] == pytest.approx(0.01 / round(len(steps) / 2))
    tokens = {row["trajectory_id"]: sum(len(turn["token_ids"]) for turn in row["turns"]) for row in chosen}
    whole_epoch = len(chosen) // 4
    if len(chosen) % 4 == 0:
        assert sum(step["update/num_loss_tokens"] for step in steps[:whole_epoch]) == sum(tokens.values())
    assert all(step["update/num_samples"] == 4 for step in steps)
    assert not (trained / "warm_start.json").exists()


def test_sft_goes_on_after_a_kill_with_equal_losses(distilled, trained, config, tmp_path):
    path, settings = tmp_path / "run", (*SFT, f"sft.trajectories=[{distilled}]")
    run_sft(config(*settings, "sft.checkpoint_every=1", output_dir=path))
    last = max(path.glob("checkpoints/step_*"))
    assert last.name.endswith(f"{len(metrics(trained)) - 1}")
    shutil.rmtree(path / "hf")
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])  # killed in the last step
    run_sft(config(*settings, "sft.checkpoint_every=1", output_dir=path), resume=True)
    assert [step["update/loss"] for step in metrics(path)] == pytest.approx(
        [step["update/loss"] for step in metrics(trained)], rel=1e-6
    )
    one, other = (load_file(where / "hf" / "model.safetensors") for where in (path, trained))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_sft_stops_in_time_and_goes_on(distilled, trained, config, tmp_path):
    path, settings = tmp_path / "run", (*SFT, f"sft.trajectories=[{distilled}]")
    assert run_sft(config(*settings, "job.max_time='0:0:0:0'", output_dir=path)) is None
    assert json.loads((path / "stopped.json").read_text()) == {"step": 1, "reason": "job.max_time"}
    assert not (path / "hf").exists()
    assert run_sft(config(*settings, output_dir=path), resume=True) == path / "hf"
    assert not (path / "stopped.json").exists()
    losses = [[step["update/loss"] for step in metrics(where)] for where in (path, trained)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_frozen_vision_tower_stays_as_it_was(distilled, config, tmp_path):
    path = tmp_path / "run"
    settings = (*SFT, f"sft.trajectories=[{distilled}]", "sft.num_epochs=0.3", "actor.freeze_vision=true")
    run_sft(config(*settings, output_dir=path))
    before, after = (load_file(path / name / "model.safetensors") for name in ("random_weights", "hf"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not [name for name in moved if "visual" in name]


def test_the_policys_questions_are_filtered(distilled, trained, config, tmp_path):
    path = tmp_path / "run"
    settings = (f"filter.teacher={distilled}", "filter.num_rollouts=2", "filter.num_concurrent=4")
    report = run_filter(config(*settings, output_dir=path, checkpoint=trained / "hf"))
    kept = [json.loads(line)["id"] for line in (path / "kept.jsonl").read_text().splitlines()]
    assert kept == report.kept and sum(report.counts.values()) == 12
    failed = [a.question_id for a in attempts.read_attempts(distilled) if a.num_correct == 0]
    assert not set(kept) & set(failed)
    assert "# Questions for reinforcement learning" in (path / "report.md").read_text()
    again = run_filter(config(*settings, output_dir=path, checkpoint=trained / "hf"), resume=True)
    assert again.fates == report.fates


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("distill", ["distill.teacher=scripted"], "a stream without end needs a number of questions"),
        ("sft", ["data=world_specks"], "sft needs sft.trajectories, or the warm start of the embedded world"),
        ("sft", ["sft.trajectories=[nowhere]"], "nowhere must hold trajectories"),
        (
            "distill",
            ["data=files", "data.files=[{path: gone.jsonl}]", "distill.teacher=scripted"],
            "a data path must be",
        ),
    ],
)
def test_what_cannot_work_is_said_with_its_cure(tmp_path, capsys, monkeypatch, command, settings, message):
    monkeypatch.chdir(tmp_path)
    assert main([command, *settings, "--output-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_teacher_without_attempts_or_address(config, trained, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="must hold attempts.jsonl; got no attempt"):
        run_filter(config(f"filter.teacher={tmp_path}", output_dir=tmp_path / "a", checkpoint=trained / "hf"))
    endpoint = ("distill.teacher=endpoint", "distill.endpoint.model=big")
    with pytest.raises(ConfigError, match="distill.teacher=endpoint needs distill.endpoint.url"):
        run_distill(config(*endpoint, output_dir=tmp_path / "b", checkpoint=trained / "hf"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="the teacher's key is read from OPENAI_API_KEY; got it is not set"):
        run_distill(
            config(*endpoint, "distill.endpoint.url=http://x/v1", output_dir=tmp_path / "c", checkpoint=trained / "hf")
        )


def test_the_scripted_teacher_refuses_other_questions(config, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "mine", "question": "?", "answer": "red", "source": "world"}\n')
    files = f"data.files=[{{path: {tmp_path / 'q.jsonl'}}}]"
    with pytest.raises(
        ValueError, match="the scripted teacher knows questions of the embedded world alone; got 'mine'"
    ):
        run_distill(config(*TEACHER, files, output_dir=tmp_path / "run"))


def test_reinforcement_learning_asks_the_kept_questions_and_measures_the_held_out(config, tiny_checkpoint, tmp_path):
    (tmp_path / "kept.jsonl").write_text("".join(f'{{"id": "file-0-{i}"}}\n' for i in (1, 4, 7, 9)))
    shared = config(output_dir=tmp_path / "run")
    (file,) = shared.data.files
    files = f"data.files=[{{path: {file.path}, keep: {tmp_path / 'kept.jsonl'}}}]"
    settings = (files, "data.held_out=0.25", "train.num_steps=2", "train.eval_every=0", "train.checkpoint_every=0")
    run_training(config(*settings, output_dir=tmp_path / "run", checkpoint=tiny_checkpoint))
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    asked = {name for line in lines for name in json.loads(line).get("questions", ())}
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())["final"]
    (held_out,) = {question["question_id"] for question in evaluation["questions"]}
    # Three of the four are trained, and after an epoch again under another id; the fourth is measured.
    assert {name.partition("~")[0] for name in asked} | {held_out} == {f"file-0-{i}" for i in (1, 4, 7, 9)}
    assert len(asked) == 4 and held_out not in {name.partition("~")[0] for name in asked}
