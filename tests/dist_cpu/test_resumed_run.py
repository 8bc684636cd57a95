"""``nemo-axpo train`` on two pipeline stages: a run that is resumed is the run that was never interrupted, bit by bit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_runs import AXPO, NUM_STEPS, RUN, evaluation, metrics, reproducible, run_ranks, train, warm_start

from nemo_axpo.journal import verify_journal

STAGES = "actor.pipeline_parallel=2"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def checkpoint(study):
    """A warm start of four layers, which two stages share."""
    return warm_start(study, num_layers=4)


def train_on_stages(run: Path, *options: str, checkpoint: Path) -> Path:
    result = run_ranks(2, "train", *options, "--output-dir", run, f"model.path={checkpoint}", *RUN, *AXPO, STAGES)
    assert result.returncode == 0, result.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def uninterrupted(study, checkpoint):
    """Three steps, a checkpoint after each."""
    return train_on_stages(study / "whole", checkpoint=checkpoint)


def interrupted(whole: Path, path: Path) -> Path:
    """The run as it was when its first checkpoint had just been published."""
    run = shutil.copytree(whole, path)
    for step in range(2, NUM_STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step_{step:05d}")
    shutil.rmtree(run / "hf")
    return run


@pytest.mark.slow
def test_pipeline_stages_go_on_as_if_never_interrupted(uninterrupted, checkpoint, tmp_path):
    run = interrupted(uninterrupted, tmp_path / "run")
    train_on_stages(run, "--resume", checkpoint=checkpoint)
    assert reproducible(metrics(run)) == reproducible(metrics(uninterrupted))
    assert evaluation(run) == evaluation(uninterrupted)
    ours, theirs = (load_file(path / "hf" / "model.safetensors") for path in (run, uninterrupted))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    verdict = verify_journal(run / "journal.jsonl")
    assert verdict.is_good and verdict.num_questions == 4 * NUM_STEPS
    assert (verdict.num_resumes, verdict.num_undone) == (1, NUM_STEPS - 1)


@pytest.mark.slow
def test_one_process_goes_on_where_two_stages_were(uninterrupted, checkpoint, tmp_path):
    run = interrupted(uninterrupted, tmp_path / "run")
    train(run, *AXPO, "actor.pipeline_parallel=1", checkpoint=checkpoint, resume=True)
    ours, theirs = (reproducible(metrics(path))[1] for path in (run, uninterrupted))
    rates = [name for name in theirs if name.startswith("rollout/")]
    assert {name: ours[name] for name in rates} == {name: theirs[name] for name in rates}, "the same rows are sampled"
    updates = {name: value for name, value in theirs.items() if name.startswith("update/")}
    assert {name: ours[name] for name in updates} == pytest.approx(updates, rel=1e-4, abs=1e-6)
    state = json.loads((run / "checkpoints" / f"step_{NUM_STEPS:05d}" / "state.json").read_text())["state"]
    assert state["layout"] == {"tensor_parallel": 1, "pipeline_parallel": 1, "replicas": 1}
