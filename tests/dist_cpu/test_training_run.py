"""``nemo-axpo train`` on two ranks: what is sampled, trained and measured is what one process samples, trains, measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_runs import AXPO, RUN, evaluation, fork_ranks, metrics, run_ranks, train, trees, warm_start

LAYOUTS = {"tp2": ("actor.tensor_parallel=2",), "dp2": (), "pp3": ("actor.pipeline_parallel=3",)}
ALWAYS = ("tp2", "dp2")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def checkpoint(study):
    return warm_start(study)


@pytest.fixture(scope="module")
def alone(study, checkpoint):
    return train(study / "alone", *AXPO, checkpoint=checkpoint)


@pytest.fixture(scope="module", params=[*ALWAYS, pytest.param("pp3", marks=pytest.mark.slow)])
def shared(request, study, checkpoint):
    """The same run on two ranks, or on a pipeline of three stages."""
    settings = [f"model.path={checkpoint}", *RUN, *AXPO, *LAYOUTS[request.param]]
    num_ranks = 3 if request.param == "pp3" else 2
    result = fork_ranks(num_ranks, "train", "--output-dir", study / request.param, *settings)
    assert result.returncode == 0, result.stderr[-3000:]
    return study / request.param, result


def numbers_of_rollouts(run: Path) -> list[dict]:
    return [{name: row[name] for name in row if name.startswith(("rollout/", "eval/"))} for row in metrics(run)]


def test_the_first_step_samples_the_same_rows_and_takes_the_same_update(alone, shared):
    run, _ = shared
    ours, theirs = metrics(run)[0], metrics(alone)[0]
    for name in theirs:
        if name.startswith("rollout/"):
            assert ours[name] == theirs[name], name
        elif name.startswith("update/"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    assert ours["rollout/num_resamples"] > 0, "the step must resample something"


def test_the_evaluation_before_training_is_the_same(alone, shared):
    assert evaluation(shared[0])["initial"] == evaluation(alone)["initial"]


def test_the_whole_run_is_there_once(alone, shared):
    run, result = shared
    assert [row["step"] for row in metrics(run)] == [row["step"] for row in metrics(alone)]
    assert {tree["question_id"] for tree in trees(run, 1)} <= {tree["question_id"] for tree in trees(alone, 1)}
    assert result.stdout.count("step 3/3") == 1, "one rank speaks"
    ours, theirs = (load_file(path / "hf" / "model.safetensors") for path in (run, alone))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_bytes_between_ranks_are_reported(shared):
    for row in metrics(shared[0]):
        assert 0 < row["sent/records_bytes"] < row["sent/samples_bytes"]


def test_another_process_may_not_use_the_directory_meanwhile(alone, checkpoint):
    """The main rank's refusal ends torchrun's job, with its reason."""
    result = run_ranks(2, "train", "--output-dir", alone, f"model.path={checkpoint}", *RUN, *AXPO)
    assert isinstance(result, subprocess.CompletedProcess) and result.returncode != 0
    assert "--resume" in result.stderr
