"""A run that was killed and resumed is the run that was never interrupted, bit by bit."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from forked import run_forked
from safetensors.torch import load_file
from tiny_runs import AXPO, NUM_STEPS, RUN, evaluation, metrics, reproducible, train, trees

from nemo_axpo.actors import cpu_shim
from nemo_axpo.journal import verify_journal

cpu_shim.install()

# isort: split
from megatron.core import dist_checkpointing

KILLED = Path(__file__).parent / "killed_run.py"


def assert_same_run(run, *, uninterrupted):
    assert reproducible(metrics(run)) == reproducible(metrics(uninterrupted))
    assert evaluation(run) == evaluation(uninterrupted)
    for step in range(1, NUM_STEPS + 1):
        assert trees(run, step) == trees(uninterrupted, step)
    last = f"checkpoints/step_{NUM_STEPS:05d}"
    for name, read in (("hf/model.safetensors", load_file), (last, read_sharded)):
        ours, theirs = read(run / name), read(uninterrupted / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    state, expected = (json.loads((path / last / "state.json").read_text())["state"] for path in (run, uninterrupted))
    assert state == expected and state["questions"] == {"next": 4 * NUM_STEPS, "in_flight": []}
    ours, theirs = verify_journal(run / "journal.jsonl"), verify_journal(uninterrupted / "journal.jsonl")
    assert ours.is_good and theirs.is_good and ours.num_questions == theirs.num_questions == 4 * NUM_STEPS
    assert ours.num_repeated == 0 and (ours.num_resumes, theirs.num_resumes) == (1, 0)


def read_sharded(path):
    """Every tensor of a checkpoint: weights and optimizer state."""
    return dist_checkpointing.load_plain_tensors(str(path))


@pytest.mark.parametrize(
    "moment",
    [
        "before the first checkpoint",
        "between the optimizer steps of step 2",
        "while the checkpoint of step 2 is written",
    ],
)
def test_killed_and_resumed(axpo, checkpoint, tmp_path, moment):
    run = tmp_path / "run"
    settings = [f"model.path={checkpoint}", *RUN, *AXPO]
    killed = run_forked(KILLED, moment, "train", "--output-dir", run, *settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (run / "hf").exists()
    train(run, *AXPO, checkpoint=checkpoint, resume=True)
    assert_same_run(run, uninterrupted=axpo)


@pytest.mark.parametrize("position", range(1, NUM_STEPS + 1))
def test_resumed_from_every_checkpoint(axpo, checkpoint, tmp_path, position):
    run = shutil.copytree(axpo, tmp_path / "run")
    rows = metrics(run)
    for step in range(position + 1, NUM_STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step_{step:05d}")
    shutil.rmtree(run / "hf")
    train(run, *AXPO, checkpoint=checkpoint, resume=True)
    assert_same_run(run, uninterrupted=axpo)
    # Times tell which steps ran again.
    is_old = [new == old for new, old in zip(metrics(run), rows, strict=True)]
    assert is_old == [step <= position for step in range(1, NUM_STEPS + 1)]
