"""NeMo-Aligner's own ``ReinforceTrainer.fit`` with our trainer and actor, on two gloo ranks, beside the main loop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from tiny_runs import AXPO, RUN, evaluation, metrics, reproducible, run_ranks, warm_start

pytestmark = pytest.mark.nemo

ROOT = Path(__file__).parents[2]
ALIGNER = (*RUN, *AXPO, "loop=aligner", "train.num_steps=4", "train.eval_every=2", "train.checkpoint_every=2")
ENTRY = ROOT / "nemo_axpo" / "aligner" / "train_qwen3_vl_axpo_actor.py"


def run_two(command: str, *arguments: str | Path) -> str:
    """What the command says on two ranks; it must succeed."""
    done = run_ranks(2, command, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def without_sync(run: Path) -> list[dict]:
    """Rows of the run; the first transfer of a process is of weights, not of an update."""
    rows = reproducible(metrics(run))
    return [{name: value for name, value in row.items() if not name.startswith("sync/")} for row in rows]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tmp_path_factory.mktemp("aligner")


@pytest.fixture(scope="module")
def checkpoint(study):
    return warm_start(study)


@pytest.fixture(scope="module")
def whole(study, checkpoint):
    """Four steps under NeMo-Aligner, uninterrupted."""
    run_two("train", "--output-dir", study / "whole", f"model.path={checkpoint}", *ALIGNER)
    return study / "whole"


@pytest.fixture(scope="module")
def native(study, checkpoint):
    """The same steps of the main loop."""
    settings = [setting for setting in ALIGNER if setting != "loop=aligner"]
    run_two("train", "--output-dir", study / "native", f"model.path={checkpoint}", *settings)
    return study / "native"


def test_the_trainer_is_nemo_aligners(whole):
    from nemo_axpo import aligner

    aligner.register()
    from nemo_aligner.algorithms.axpo import AXPOTrainer
    from nemo_aligner.algorithms.reinforce import ReinforceTrainer

    assert issubclass(AXPOTrainer, ReinforceTrainer) and AXPOTrainer.fit is ReinforceTrainer.fit


def test_another_reward_model_is_refused():
    from nemo_axpo.aligner.trainer import AXPOTrainer

    with pytest.raises(TypeError, match="rm must be a VerifierRewardModel"):
        AXPOTrainer(*[None] * 12)


def test_every_step_samples_calls_tools_resamples_and_trains(whole):
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(0 < row["rollout/tool_use"] for row in rows)
    assert sum(row["rollout/num_resamples"] for row in rows) > 0, "some question must be triggered"
    assert all(row["update/grad_norm"] > 0 for row in rows)
    assert all({"time/generate_s", "time/update_s", "time/step_s"} <= row.keys() for row in rows)
    assert ["eval/pass@1" in row for row in rows] == [False, True, False, True]
    assert all(row["memory/peak_gib"] > 0 for row in rows)
    assert all(row["sync/bytes"] > 0 and row["sync/proof"] < 1e-3 for row in rows[1:]), "every update is proven"
    assert (whole / "rollouts" / "step_00001.jsonl").stat().st_size and (whole / "journal.jsonl").stat().st_size


def test_the_first_step_is_that_of_the_main_loop(whole, native):
    """Same questions, rollouts, continuations, advantages; the loss up to the order in which rows are summed."""
    ours, theirs = metrics(whole)[0], metrics(native)[0]
    compared = [name for name in theirs if name.startswith(("rollout/", "tools/", "update/"))]
    assert {"rollout/num_resamples", "update/loss", "update/grad_norm", "update/lr"} <= set(compared)
    for name in compared:
        if "time" not in name and "seconds" not in name:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-7), name


def test_tensor_parallel_ranks_take_the_same_step(study, checkpoint, whole):
    """One rank samples, both train."""
    settings = [f"model.path={checkpoint}", *ALIGNER, "train.num_steps=1", "actor.tensor_parallel=2"]
    run_two("train", "--output-dir", study / "tp2", *settings)
    (ours,), theirs = metrics(study / "tp2"), metrics(whole)[0]
    for name, value in theirs.items():
        if name.startswith(("rollout/", "update/")):
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_the_whole_run_ends_where_the_main_loop_does(whole, native):
    assert evaluation(whole)["initial"] == evaluation(native)["initial"]
    ours, theirs = (load_file(run / "hf" / "model.safetensors") for run in (whole, native))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(study, checkpoint, whole):
    run, settings = study / "resumed", [f"model.path={checkpoint}", *ALIGNER]
    run_two("train", "--output-dir", run, *settings, "train.num_steps=2")
    run_two("train", "--resume", "--output-dir", run, *settings)
    assert without_sync(run) == without_sync(whole)
    ours, theirs = (load_file(path / "hf" / "model.safetensors") for path in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_main_loop_resumes_what_nemo_aligner_saved(study, checkpoint):
    run, settings = study / "resumed", [f"model.path={checkpoint}", *ALIGNER]
    run_two("train", "--resume", "--output-dir", run, *settings, "train.num_steps=5", "loop=native")
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4, 5]


def test_tasks_of_srun_learn_their_ranks(monkeypatch):
    from nemo_axpo.aligner.train_qwen3_vl_axpo_actor import adopt_slurm_ranks

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    slurm = {"NTASKS": 16, "PROCID": 9, "LOCALID": 1, "NODEID": 1, "JOB_ID": 771234, "NODELIST": "dgx[07-08]"}
    for name, value in (slurm | {"JOB_NAME": "axpo", "NTASKS_PER_NODE": 8}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    adopt_slurm_ranks()
    ranks = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert ranks == {
        "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "dgx07", "MASTER_PORT": "16234",
    }  # fmt: skip
    monkeypatch.setenv("RANK", "3")
    adopt_slurm_ranks()
    assert os.environ["RANK"] == "3", "torchrun's word counts"


def test_the_entry_script_trains_from_nemos_keys(study, checkpoint):
    """GRPO, one step, through hydra_runner, as the NeMo launcher calls it: by path, from another directory."""
    run = study / "entry"
    keys = (
        "trainer.accelerator=cpu", "trainer.precision=32", "trainer.devices=2", "trainer.axpo.algorithm=grpo",
        "trainer.axpo.max_steps=1", "trainer.axpo.val_check_interval=1", "trainer.axpo.num_rollouts_per_prompt=4",
        "+model.axpo.engine.name=hf", "model.axpo.num_rollout_samples=4", "model.axpo.num_val_samples=2",
        "model.axpo.length_params.max_length=32", "model.axpo.tools.names=[image_zoom_in]", "model.encoder_seq_length=150",
        "~model.axpo.tools.instructions", "+model.axpo.tools.observation='image {index}:'",
        "+model.axpo.tools.max_error_chars=24", "model.global_batch_size=16", "model.micro_batch_size=4",
        "model.tensor_model_parallel_size=1", "model.sequence_parallel=False", "model.transformer_engine=False",
        "model.activations_checkpoint_granularity=null", "model.optim.name=adamw",
        "exp_manager.create_tensorboard_logger=False", f"exp_manager.explicit_log_dir={run}",
        f"pretrained_checkpoint.restore_from_path={checkpoint}",
    )  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(ENTRY), *keys],
        cwd=study,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (row,) = metrics(run)
    assert row["rollout/num_rollouts"] == 16 and row["rollout/num_resamples"] == 0 and row["update/num_samples"] > 0
    assert (run / "hf" / "model.safetensors").is_file()
