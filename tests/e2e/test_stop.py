"""A run that is asked to stop saves, ends with status 0, and goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal

from tiny_runs import AXPO, NUM_STEPS, WARM_START, metrics, reproducible, succeed, train

from nemo_axpo.loop import TrainingLoop


def test_a_time_limit_stops_after_a_step_and_the_run_goes_on(axpo, checkpoint, tmp_path):
    run = tmp_path / "run"
    train(run, *AXPO, "job.max_time=0:00:00:00", checkpoint=checkpoint)
    assert json.loads((run / "stopped.json").read_text()) == {"step": 1, "reason": "job.max_time"}
    assert not (run / "hf").exists() and len(metrics(run)) == 1
    for step in range(2, NUM_STEPS + 1):  # after the last one the evaluation is still to come
        train(run, *AXPO, "job.max_time=0:00:00:00", checkpoint=checkpoint, resume=True)
        assert json.loads((run / "stopped.json").read_text())["step"] == step and not (run / "hf").exists()
    train(run, *AXPO, checkpoint=checkpoint, resume=True)
    assert not (run / "stopped.json").exists() and (run / "hf").exists()
    assert reproducible(metrics(run)) == reproducible(metrics(axpo)) and len(metrics(run)) == NUM_STEPS


def test_a_signal_lets_the_step_end_and_saves(checkpoint, tmp_path, monkeypatch):
    explore = TrainingLoop.explore

    async def signalled(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGUSR1)  # as the queue does, in the middle of a step
        return await explore(self, index)

    monkeypatch.setattr(TrainingLoop, "explore", signalled)
    run = train(tmp_path / "run", *AXPO, checkpoint=checkpoint)
    assert json.loads((run / "stopped.json").read_text()) == {"step": 2, "reason": "signal SIGUSR1"}
    assert (run / "checkpoints" / "step_00002" / "state.json").exists() and not (run / "hf").exists()


def test_the_warm_start_stops_and_goes_on_too(tmp_path):
    settings = [*WARM_START, "sft.num_steps=3", "eval.window_questions=0"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    succeed("sft", "--output-dir", whole, *settings)
    for step in (1, 2):
        succeed("sft", "--output-dir", parts, *settings, "job.max_time=0:00:00:00", "--resume")
        assert json.loads((parts / "stopped.json").read_text()) == {"step": step, "reason": "job.max_time"}
    succeed("sft", "--output-dir", parts, *settings, "--resume")
    assert not (parts / "stopped.json").exists()
    assert (parts / "hf" / "model.safetensors").read_bytes() == (whole / "hf" / "model.safetensors").read_bytes()
