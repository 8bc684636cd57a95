"""A training command on the smallest real parts: when it evaluates, records and checkpoints, how it resumes and fails."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from small_runs import read_rows, small_config

from nemo_axpo import assembly, job
from nemo_axpo.checkpoints.sharded_files import ShardedSave
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.job import metrics_sinks
from nemo_axpo.loop import TrainingLoop
from nemo_axpo.metrics_log import TensorBoardSink
from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.train import run_training

CADENCE = ("train.checkpoint_every=2", "train.keep_checkpoints=2", "train.record_every=3", "train.eval_every=2")


@pytest.fixture(scope="module")
def finished(tiny_checkpoint, tmp_path_factory):
    """Five steps: evaluations at 2 and 4, records at 3, checkpoints at 2, 4 and 5."""
    path = tmp_path_factory.mktemp("train") / "run"
    run_training(small_config(*CADENCE, "train.num_steps=5", output_dir=path, checkpoint=tiny_checkpoint))
    return path


@pytest.fixture(name="config")
def config_fixture(tiny_checkpoint, tmp_path):
    return small_config("train.num_steps=2", output_dir=tmp_path / "run", checkpoint=tiny_checkpoint)


@pytest.fixture(name="closed")
def closed_fixture(monkeypatch):
    """Engines that were closed."""
    engines, close = [], HfEngine.close

    async def note(self):
        engines.append(self)
        await close(self)

    monkeypatch.setattr(HfEngine, "close", note)
    return engines


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def evaluated_steps(path):
    return [row["step"] for row in read_rows(path) if "eval/pass@1" in row]


def test_an_error_does_not_cost_the_checkpoint_that_is_being_written(tiny_checkpoint, tmp_path, monkeypatch):
    """The first step's is in its thread when the second step breaks."""
    settings = ("train.checkpoint_every=1", "train.num_steps=2")
    config = small_config(*settings, output_dir=tmp_path / "run", checkpoint=tiny_checkpoint)
    write, explore = ShardedSave.write, TrainingLoop.explore

    def slow_write(self, **options):
        time.sleep(1.0)
        write(self, **options)

    async def broken_explore(self, index):
        if index == 1:
            raise RuntimeError("a bug of the second step")
        return await explore(self, index)

    monkeypatch.setattr(ShardedSave, "write", slow_write)
    monkeypatch.setattr(TrainingLoop, "explore", broken_explore)
    with pytest.raises(RuntimeError, match="a bug of the second step"):
        run_training(config)
    assert names(tmp_path / "run" / "checkpoints") == ["step_00001"]


# ------------------------------------------------------------------------------------------------------------- cadence
def test_steps_are_numbered_from_one(finished):
    assert [row["step"] for row in read_rows(finished)] == [1, 2, 3, 4, 5]


def test_evaluations_lie_between_the_initial_and_the_final_one(finished):
    assert evaluated_steps(finished) == [2, 4]
    assert json.loads((finished / "evaluation.json").read_text()).keys() == {"initial", "final"}


def test_groups_are_recorded_every_so_many_steps(finished):
    assert names(finished / "rollouts") == ["step_00003.jsonl"]


def test_the_newest_checkpoints_are_kept_and_the_last_step_has_one(finished):
    assert names(finished / "checkpoints") == ["step_00004", "step_00005"]


def test_intervals_of_zero_leave_the_ends(tiny_checkpoint, tmp_path):
    never = ("train.checkpoint_every=0", "train.record_every=0", "train.eval_every=0", "train.num_steps=2")
    run_training(small_config(*never, output_dir=tmp_path / "run", checkpoint=tiny_checkpoint))
    assert names(tmp_path / "run" / "checkpoints") == ["step_00002"]
    assert evaluated_steps(tmp_path / "run") == [] and not (tmp_path / "run" / "rollouts").exists()
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()).keys() == {"initial", "final"}


# -------------------------------------------------------------------------------------------------------------- resume
def test_a_finished_run_may_be_made_longer(finished, tiny_checkpoint, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "metrics.jsonl").read_text()
    initial = json.loads((run / "evaluation.json").read_text())["initial"]
    run_training(small_config(*CADENCE, "train.num_steps=6", output_dir=run, checkpoint=tiny_checkpoint), resume=True)
    assert (run / "metrics.jsonl").read_text().startswith(before)
    assert [row["step"] for row in read_rows(run)] == [1, 2, 3, 4, 5, 6]
    assert names(run / "checkpoints") == ["step_00005", "step_00006"]
    assert names(run / "rollouts") == ["step_00003.jsonl", "step_00006.jsonl"]
    assert json.loads((run / "evaluation.json").read_text())["initial"] == initial


def test_resuming_where_nothing_was_saved_starts_at_the_first_step(config, monkeypatch):
    step = TrainingLoop.step

    async def fails_at_first(self, index):
        raise RuntimeError("the machine went down")

    monkeypatch.setattr(TrainingLoop, "step", fails_at_first)
    with pytest.raises(RuntimeError, match="the machine went down"):
        run_training(config)
    monkeypatch.setattr(TrainingLoop, "step", step)
    run_training(config, resume=True)
    assert [row["step"] for row in read_rows(Path(config.output_dir))] == [1, 2]


# ------------------------------------------------------------------------------------------------------------- failing
def test_a_verifier_that_cannot_tell_right_from_wrong_stops_it_first(config, closed, monkeypatch):
    class Generous:
        async def __call__(self, question, answer):
            return 1.0

    monkeypatch.setattr(assembly, "build_verifiers", lambda section: VerifierRegistry({"world": Generous()}))
    with pytest.raises(ValueError, match="gives 'this answer is wrong on purpose' the reward 1 instead of 0"):
        run_training(config)
    assert names_without_lock(config) == [] and len(closed) == 1


def test_the_engine_is_closed_when_a_step_fails(config, closed, monkeypatch):
    async def fails(self, index):
        raise RuntimeError("bad step")

    monkeypatch.setattr(TrainingLoop, "step", fails)
    with pytest.raises(RuntimeError, match="bad step"):
        run_training(config)
    assert len(closed) == 1


def names_without_lock(config):
    return [name for name in names(Path(config.output_dir)) if name != ".lock"]


# --------------------------------------------------------------------------------------------------------------- sinks
def test_sinks_are_what_the_config_asks_for(tmp_path):
    run = RunDirectory(tmp_path)
    assert metrics_sinks(small_config(output_dir=tmp_path), run=run, last_step=0) == []
    config = small_config("logging.tensorboard=true", output_dir=tmp_path)
    (sink,) = metrics_sinks(config, run=run, last_step=0)
    assert isinstance(sink, TensorBoardSink)
    sink.log(1, {"update/loss": 0.5})
    sink.close()
    assert list(run.tensorboard_path.glob("events.out.tfevents.*"))


def test_wandb_gets_project_and_config(tmp_path, monkeypatch):
    got = []
    monkeypatch.setattr(job, "WandbSink", lambda path, **options: got.append((path, options)))
    config = small_config("logging.wandb.enabled=true", "logging.wandb.project=tools", output_dir=tmp_path)
    metrics_sinks(config, run=RunDirectory(tmp_path), last_step=3)
    ((path, options),) = got
    assert path == tmp_path and options["project"] == "tools"
    assert options["config"]["algorithm"]["name"] == "grpo" and json.dumps(options["config"])
