"""A finished run that is resumed with nothing left to do: it ends as it had, and no step is taken twice."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from tiny_runs import AXPO, RUN, evaluation, metrics, run_ranks

pytestmark = pytest.mark.nemo


def test_resuming_a_finished_run_changes_nothing(served_checkpoint, tmp_path):
    run = tmp_path / "run"
    settings = (f"model.path={served_checkpoint}", *RUN, *AXPO, "loop=aligner", "train.num_steps=1", "train.eval_every=1")
    seen = []
    for option in ((), ("--resume",)):
        done = run_ranks(1, "train", *option, "--output-dir", run, *settings)
        assert done.returncode == 0, done.stderr[-20_000:]
        seen.append((metrics(run), evaluation(run), load_file(run / "hf" / "model.safetensors")))
    (rows, before, weights), (rows_after, after, weights_after) = seen
    assert rows == rows_after and before == after
    assert all((weights_after[name] == tensor).all() for name, tensor in weights.items())
