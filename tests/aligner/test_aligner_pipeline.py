"""``ReinforceTrainer.fit`` on pipeline stages, alone and with tensor or data parallelism, on gloo ranks: the main loop's run on the
same stages, and one process's up to the order of sums."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_runs import AXPO, RUN, evaluation, metrics, reproducible, run_ranks, succeed, warm_start

from nemo_axpo.journal import verify_journal

pytestmark = pytest.mark.nemo

NUM_STEPS = 4
SIZES = (*RUN, *AXPO, f"train.num_steps={NUM_STEPS}", "train.eval_every=2", "train.checkpoint_every=2")
STAGES, ALIGNER = "actor.pipeline_parallel=2", "loop=aligner"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def checkpoint(study):
    """A warm start of four layers, which two stages share."""
    return warm_start(study, num_layers=4)


@pytest.fixture(scope="module")
def train(checkpoint):
    """A run on so many ranks; one is this process."""

    def call(run: Path, *settings: str, num_ranks: int) -> Path:
        arguments = ("train", "--resume", "--output-dir", run, f"model.path={checkpoint}", *SIZES, *settings)
        if num_ranks == 1:
            succeed(*arguments)
        else:
            done = run_ranks(num_ranks, *arguments)
            assert done.returncode == 0, done.stderr[-4000:]
        return run

    return call


@pytest.fixture(scope="module")
def stages(study, train):
    """Four steps under NeMo-Aligner on two pipeline stages."""
    return train(study / "aligner", ALIGNER, STAGES, num_ranks=2)


@pytest.fixture(scope="module")
def native(study, train):
    """The same steps of the main loop on the same stages."""
    return train(study / "native", STAGES, num_ranks=2)


@pytest.fixture(scope="module")
def alone(study, train):
    """The same steps of the main loop in one process."""
    return train(study / "alone", num_ranks=1)


def values(row: dict, *sections: str) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(sections)}


def without_sync(run: Path) -> list[dict]:
    """Rows of the run; the first transfer of a process is of weights, not of an update."""
    rows = reproducible(metrics(run))
    return [{name: value for name, value in row.items() if not name.startswith("sync/")} for row in rows]


def assert_same_step(ours: dict, theirs: dict, *, rel: float) -> None:
    assert values(ours, "rollout/") == values(theirs, "rollout/"), "the same rows are sampled"
    updates = values(theirs, "update/")
    assert {"update/loss", "update/grad_norm", "update/lr", "update/num_samples"} <= updates.keys()
    assert values(ours, "update/") == pytest.approx(updates, rel=rel, abs=1e-6)


def test_stages_sample_call_tools_resample_and_train(stages):
    rows = metrics(stages)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["rollout/tool_use"] > 0 and row["update/grad_norm"] > 0 for row in rows)
    assert sum(row["rollout/num_resamples"] for row in rows) > 0, "some question must be triggered"
    assert ["eval/pass@1" in row for row in rows] == [False, True, False, True]
    assert all(row["sync/bytes"] > 0 and row["sync/proof"] < 1e-3 for row in rows[1:]), "every update is proven"
    assert sorted(path.name for path in (stages / "checkpoints").iterdir()) == ["step_00002", "step_00004"]


def test_every_step_is_the_main_loops_on_the_same_stages(stages, native):
    for ours, theirs in zip(metrics(stages), metrics(native), strict=True):
        assert_same_step(ours, theirs, rel=1e-5)
        for name in ("batch/imbalance", "batch/sharing", "sent/records_bytes", "sent/samples_bytes"):
            assert ours[name] == theirs[name], name
        assert theirs.keys() - ours.keys() <= {"sync/proof", "sync/proof_s", "time/sync_s"}
    assert evaluation(stages)["initial"] == evaluation(native)["initial"]
    assert (stages / "journal.jsonl").read_text() == (native / "journal.jsonl").read_text()
    ours, theirs = (load_file(run / "hf" / "model.safetensors") for run in (stages, native))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_every_step_is_that_of_one_process(stages, alone):
    for ours, theirs in zip(metrics(stages), metrics(alone), strict=True):
        assert_same_step(ours, theirs, rel=1e-4)


@pytest.mark.parametrize("settings", [("actor.tensor_parallel=2",), ()], ids=["tp2", "dp2"])
def test_stages_of_several_ranks_take_the_same_step(study, train, alone, settings):
    """Four ranks: two stages of two tensor-parallel ranks each, or two replicas of two stages."""
    run = study / f"pp2_{len(settings)}"
    train(run, ALIGNER, STAGES, *settings, "train.num_steps=1", num_ranks=4)
    (ours,) = metrics(run)
    assert_same_step(ours, metrics(alone)[0], rel=1e-4)
    assert evaluation(run)["initial"] == evaluation(alone)["initial"]


@pytest.fixture
def interrupted(stages, tmp_path):
    """The run as its first checkpoint had just been published."""
    run = shutil.copytree(stages, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_00004")
    shutil.rmtree(run / "hf")
    return run


def test_stages_go_on_as_if_never_interrupted(stages, train, interrupted):
    train(interrupted, ALIGNER, STAGES, num_ranks=2)
    assert without_sync(interrupted) == without_sync(stages) and evaluation(interrupted) == evaluation(stages)
    ours, theirs = (load_file(run / "hf" / "model.safetensors") for run in (interrupted, stages))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    verdict = verify_journal(interrupted / "journal.jsonl")
    assert verdict.is_good and verdict.num_questions == 4 * NUM_STEPS and verdict.num_resumes == 1


def test_one_process_of_the_main_loop_goes_on_where_stages_were(stages, train, interrupted):
    train(interrupted, "loop=native", num_ranks=1)
    for ours, theirs in zip(metrics(interrupted)[2:], metrics(stages)[2:], strict=True):
        assert_same_step(ours, theirs, rel=1e-4)
