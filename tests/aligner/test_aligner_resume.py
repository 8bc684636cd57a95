"""A run under NeMo-Aligner that is stopped by its time limit or a signal, resumed by the same command, and handed from loop to
loop: it ends with the journal, the numbers and the weights of a run that was never interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_runs import AXPO, RUN, evaluation, metrics, reproducible, succeed, warm_start

from nemo_axpo.aligner.registry import AXPO as ALGORITHM
from nemo_axpo.errors import RunDirectoryError
from nemo_axpo.journal import JournalVerdict, verify_journal
from nemo_axpo.launcher.resolvers import register_resolvers
from nemo_axpo.metrics_log import MetricsLog

pytestmark = pytest.mark.nemo

NUM_STEPS = 4
SIZES = (*RUN, *AXPO, f"train.num_steps={NUM_STEPS}", "train.eval_every=2", "train.checkpoint_every=1")
KEYS = (
    "trainer.accelerator=cpu", "trainer.precision=32", "trainer.devices=1", f"trainer.axpo.max_steps={NUM_STEPS}",
    "trainer.axpo.val_check_interval=2", "trainer.axpo.save_interval=1", "trainer.axpo.num_rollouts_per_prompt=4",
    "trainer.axpo.num_continuations=2", "trainer.axpo.resample_ratio=0.5", "model.axpo.engine.name=hf",
    "model.axpo.num_rollout_samples=4", "model.axpo.num_val_samples=2", "model.axpo.length_params.max_length=32",
    "model.axpo.tools={names: [image_zoom_in], observation: 'image {index}:', max_error_chars: 24}",
    "model.encoder_seq_length=150", "model.global_batch_size=8", "model.micro_batch_size=4",
    "model.tensor_model_parallel_size=1", "model.sequence_parallel=False", "model.transformer_engine=False",
    "model.activations_checkpoint_granularity=null", "model.optim.name=adamw",
    "exp_manager.create_tensorboard_logger=False",
)  # fmt: skip
"""What makes the entry script's config a run of this size."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def checkpoint(study):
    return warm_start(study)


@pytest.fixture(scope="module")
def train(checkpoint) -> Callable[..., Path]:
    """A run, or its next part, under NeMo-Aligner unless a setting says otherwise."""

    def call(run: Path, *settings: str, resume: bool = False) -> Path:
        options = ["--resume"] if resume else []
        succeed("train", *options, "--output-dir", run, f"model.path={checkpoint}", *SIZES, "loop=aligner", *settings)
        return run

    return call


@pytest.fixture(scope="module")
def whole(study, train):
    """Four steps under NeMo-Aligner, uninterrupted."""
    return train(study / "whole")


def rows_of(run: Path) -> list[dict]:
    """Rows of the run; the first transfer of a process is of weights, not of an update."""
    return [
        {name: value for name, value in row.items() if not name.startswith("sync/")}
        for row in reproducible(metrics(run))
    ]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "hf" / "model.safetensors")


def questions_of(run: Path) -> list[list[str]]:
    """What the steps of the journal asked, the last word on each."""
    asked = {}
    for line in (run / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        if "questions" in event:
            asked[event["step"]] = event["questions"]
    return [asked[step] for step in sorted(asked)]


def good_journal(run: Path) -> JournalVerdict:
    verdict = verify_journal(run / "journal.jsonl")
    assert verdict.is_good and verdict.num_questions == 4 * NUM_STEPS and verdict.num_repeated == 0
    return verdict


def assert_same_run(run: Path, *, uninterrupted: Path) -> JournalVerdict:
    assert rows_of(run) == rows_of(uninterrupted)
    assert evaluation(run) == evaluation(uninterrupted)
    assert questions_of(run) == questions_of(uninterrupted)
    ours, theirs = weights_of(run), weights_of(uninterrupted)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (run / "stopped.json").exists()
    return good_journal(run)


def by_nemos_keys(run: Path, checkpoint: Path, *keys: str) -> None:
    """The entry script's command, after Hydra."""
    from nemo_axpo.aligner.train_qwen3_vl_axpo_actor import train

    register_resolvers()
    cfg = OmegaConf.load(ALGORITHM.config)
    del cfg.model.axpo.tools
    where = (f"exp_manager.explicit_log_dir={run}", f"pretrained_checkpoint.restore_from_path={checkpoint}")
    train(OmegaConf.merge(cfg, OmegaConf.from_dotlist([*KEYS, *where, *keys])))


@pytest.fixture(scope="module")
def whole_by_keys(study, checkpoint):
    by_nemos_keys(study / "keys_whole", checkpoint)
    return study / "keys_whole"


def test_max_time_per_run_stops_and_the_same_command_goes_on(study, checkpoint, whole_by_keys):
    """As a queue starts it again and again: exp_manager.resume_if_exists, where the first start finds no checkpoint."""
    run, starts = study / "keys", 0
    while not (run / "hf").exists():
        by_nemos_keys(run, checkpoint, "exp_manager.max_time_per_run='00:00:00:00'")
        starts += 1
        if starts < NUM_STEPS:
            assert json.loads((run / "stopped.json").read_text()) == {"step": starts, "reason": "job.max_time"}
    assert starts == NUM_STEPS
    assert assert_same_run(run, uninterrupted=whole_by_keys).num_resumes == NUM_STEPS - 1


def test_a_run_is_not_resumed_where_resume_if_exists_is_false(checkpoint, whole_by_keys):
    with pytest.raises(RunDirectoryError, match="resume_if_exists"):
        by_nemos_keys(whole_by_keys, checkpoint, "exp_manager.resume_if_exists=False")


def test_a_signal_stops_after_the_step_and_the_run_goes_on(study, checkpoint, train, whole):
    run = study / "signalled"
    settings = [f"model.path={checkpoint}", *SIZES, "loop=aligner"]
    command = [sys.executable, "-m", "nemo_axpo.cli", "train", "--output-dir", run, *settings]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (run / "rollouts" / "step_00001.jsonl").exists():  # in the middle of step 1
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["reason"] == "signal SIGUSR1" and 1 <= stopped["step"] < NUM_STEPS
    assert f"stopped after step {stopped['step']} (signal SIGUSR1); go on with --resume" in output
    assert [row["step"] for row in metrics(run)] == [*range(1, stopped["step"] + 1)] and not (run / "hf").exists()
    assert assert_same_run(train(run, resume=True), uninterrupted=whole).num_resumes == 1


@pytest.mark.parametrize("loops", [("native", "aligner"), ("aligner", "native")])
def test_the_loops_take_turns(study, train, whole, loops):
    """A step each, every one from the other's checkpoint."""
    run = study / "_".join(loops)
    for number in range(NUM_STEPS):
        train(run, f"train.num_steps={number + 1}", f"loop={loops[number % 2]}", resume=bool(number))
    for ours, theirs in zip(metrics(run), metrics(whole), strict=True):
        names = [name for name in theirs if name.startswith(("rollout/", "update/"))]
        assert {name: ours[name] for name in names} == pytest.approx(
            {name: theirs[name] for name in names}, rel=1e-4, abs=1e-6
        )
    assert questions_of(run) == questions_of(whole) and good_journal(run).num_resumes == NUM_STEPS - 1
    ours, theirs = weights_of(run), weights_of(whole)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_proofs_are_made_where_an_uninterrupted_run_makes_them(study, train):
    """After every second step; the row of a step shows the transfer before it."""
    whole = train(study / "proofs_whole", "engine.sync.proof_every=2")
    run = train(study / "proofs", "engine.sync.proof_every=2", "train.num_steps=1")
    train(run, "engine.sync.proof_every=2", resume=True)
    for path in (whole, run):
        assert [row["step"] for row in metrics(path) if "sync/proof" in row] == [3]


def test_a_finished_run_that_is_started_again_is_evaluated_and_exported_again(study, train, whole):
    """As after a death between the last checkpoint and the export."""
    run = shutil.copytree(whole, study / "again")
    shutil.rmtree(run / "hf")
    run.joinpath("evaluation.json").write_text(json.dumps({"initial": evaluation(whole)["initial"]}))
    train(run, resume=True)
    assert_same_run(run, uninterrupted=whole)


def test_an_error_publishes_the_checkpoint_that_threads_still_write(study, checkpoint, monkeypatch):
    """What breaks is the log's disk, after step 3; the checkpoint of step 2 is there for the next start."""
    from nemo_axpo.aligner.fit import run_training
    from nemo_axpo.checkpoints.sharded_files import ShardedSave
    from nemo_axpo.config.load import load_config

    monkeypatch.setattr(ShardedSave, "is_written", lambda self: False)  # a slow disk
    log = MetricsLog.log

    def full(self, step, values):
        if step == 3:
            raise OSError("No space left on device")
        log(self, step, values)

    monkeypatch.setattr(MetricsLog, "log", full)
    run = study / "broken"
    config = load_config([*SIZES, "loop=aligner"], settings={"model.path": str(checkpoint), "output_dir": str(run)})
    with pytest.raises(OSError, match="No space left"):
        run_training(config)
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == ["step_00001", "step_00002"]


def test_a_checkpoint_is_published_while_the_next_steps_run(study, train, monkeypatch):
    """Saved after step 1, it must not wait for the next save, or for the end of the run."""
    from nemo_axpo.aligner.checkpoints import CheckpointCallback
    from nemo_axpo.checkpoints.sharded_files import ShardedSave

    run, published = study / "published", []
    between_steps, is_written = CheckpointCallback.between_steps, ShardedSave.is_written

    def noted(self):
        between_steps(self)
        published.append([path.name for path in (run / "checkpoints").glob("step_*")])

    def soon(self):  # a disk that is faster than a step
        deadline = time.monotonic() + 30
        while not is_written(self):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return True

    monkeypatch.setattr(CheckpointCallback, "between_steps", noted)
    monkeypatch.setattr(ShardedSave, "is_written", soon)
    train(run, "train.num_steps=2")
    assert published == [[], ["step_00001"]]
