"""The same updates on two gloo ranks, whichever way they share the model, and on one process: equal numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from layout_worker import train
from tiny_qwen3_vl import tiny_config, tiny_model

from nemo_axpo.actors.megatron_setup import ParallelLayout

WORKER = Path(__file__).parent / "layout_worker.py"
LAYOUTS = {"tp2": "2,1,0", "tp2_sp": "2,1,1", "pp2": "1,2,0", "dp2": "1,1,0"}


def of_the_update(metrics):
    """Without padding and sharing: which rows run together follows from the layout."""
    return {name: value for name, value in metrics.items() if not name.startswith("batch/")}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Two checkpoints, each with the results of every layout of two ranks beside it."""
    paths = {name: tmp_path_factory.mktemp(name) for name in ("untied", "tied")}
    for name, path in paths.items():
        tiny_model(tiny_config(tied=name == "tied", layers=4)).save_pretrained(path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER)]
    command += [*(f"{name}={values}" for name, values in LAYOUTS.items()), "--", *map(str, paths.values())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return paths


@pytest.mark.parametrize("embeddings", ["untied", "tied"])
def test_layout_does_not_matter(checkpoints, embeddings):
    path = checkpoints[embeddings]
    alone = train(str(path), ParallelLayout())
    for name in LAYOUTS:
        ranks = [torch.load(path / f"{name}.{rank}.pt") for rank in range(2)]
        assert {key for rank in ranks for key in rank["logprobs"]} == alone["logprobs"].keys()
        for shared in ranks:
            for key, values in shared["logprobs"].items():
                assert (values - alone["logprobs"][key]).abs().max() < 1e-5, (name, key)
            for ours, theirs in zip(shared["metrics"], alone["metrics"], strict=True):
                assert of_the_update(ours) == pytest.approx(of_the_update(theirs), rel=1e-5, abs=1e-6), name
            assert shared["metrics"] == ranks[0]["metrics"], "metrics are equal on every rank"
            assert shared["steps"] == 3, "nobody steps where no replica has a sample"
        for key, tensor in alone["weights"].items():
            assert (ranks[0]["weights"][key] - tensor).abs().max() < 1e-5, (name, key)
