"""``nemo-axpo sft`` on trajectories: two ranks, however they share the model, take the steps of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_runs import metrics, run_ranks, succeed

SFT = ("sft.num_epochs=1.2", "sft.batch_size=8", "sft.warmup_steps=2", "sft.lr=0.003", "logging.tensorboard=false")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    path = tmp_path_factory.mktemp("distill")
    succeed(
        *("distill", "--output-dir", path / "run", "distill.teacher=scripted", "distill.num_questions=40"),
        *("world.tool_rate=0.5", "world.aim_rate=0.5"),
    )
    return path


def settings(distilled, name):
    trajectories = f"sft.trajectories=[{distilled / 'run'}]"
    return ("sft", "--output-dir", distilled / name, trajectories, f"data.cache_dir={distilled / 'cache'}", *SFT)


@pytest.fixture(scope="module")
def alone(distilled):
    succeed(*settings(distilled, "alone"))
    return distilled / "alone"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(), ("actor.tensor_parallel=2",)], ids=["dp2", "tp2"])
def test_two_ranks_take_the_steps_of_one(distilled, alone, layout):
    name = "dp2" if not layout else "tp2"
    result = run_ranks(2, *settings(distilled, name), *layout)
    assert result.returncode == 0, result.stderr[-3000:]
    ours, theirs = metrics(distilled / name), metrics(alone)
    assert len(ours) == len(theirs) >= 5
    for one, other in zip(ours, theirs, strict=True):
        assert one["update/loss"] == pytest.approx(other["update/loss"], rel=1e-4)
        assert (one["update/num_samples"], one["update/num_loss_tokens"]) == (
            other["update/num_samples"],
            other["update/num_loss_tokens"],
        )
