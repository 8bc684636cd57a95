"""A run that was killed and resumed is the run that was never interrupted, bit by bit."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import AXPO, NUM_STEPS, RUN, evaluation, metrics, reproducible, run_program, train, trees

KILLED = """
import os, signal, sys
from nemo_axpo import checkpoint_store, cli, loop
from nemo_axpo.actors.actor import Actor

moment, arguments = sys.argv[1], sys.argv[2:]
calls = 0

def dies(function, after):
    def call(*args, **options):
        global calls
        calls += 1
        result = function(*args, **options)
        if calls == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if moment == "between the optimizer steps of step 2":
    Actor.update = dies(Actor.update, after=3)
elif moment == "while the checkpoint of step 2 is written":
    checkpoint_store._write = dies(checkpoint_store._write, after=2)
elif moment == "before the first checkpoint":
    loop.TrainingLoop.explore = dies(loop.TrainingLoop.explore, after=1)
sys.exit(cli.main(arguments))
"""


def assert_same_run(run, *, uninterrupted):
    assert reproducible(metrics(run)) == reproducible(metrics(uninterrupted))
    assert evaluation(run) == evaluation(uninterrupted)
    for step in range(1, NUM_STEPS + 1):
        assert trees(run, step) == trees(uninterrupted, step)
    for name in ("hf/model.safetensors", f"checkpoints/step_{NUM_STEPS:05d}/tensors.safetensors"):
        ours, theirs = load_file(run / name), load_file(uninterrupted / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


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
    killed = run_program(KILLED, moment, "train", "--output-dir", run, *settings)
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
