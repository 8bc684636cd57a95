"""NeMo-Aligner's key ``trainer.axpo.trt_llm.enable``: its ``fit`` with rollouts from servers that speak TensorRT-LLM's protocol
(not TensorRT-LLM itself), through the entry script and NeMo's keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from server_processes import ServerProcess
from tiny_runs import evaluation, metrics

pytestmark = pytest.mark.nemo

ENTRY = Path(__file__).parent / "trtllm_entry.py"
SERVER = "trtllm_protocol_server.py"
MAX_ROW_TOKENS = 160
KEYS = (
    "trainer.accelerator=cpu", "trainer.precision=32", "trainer.axpo.num_rollouts_per_prompt=4",
    "trainer.axpo.num_continuations=2", "trainer.axpo.resample_ratio=0.5", "trainer.axpo.max_steps=2",
    "trainer.axpo.val_check_interval=2", "model.axpo.num_rollout_samples=4", "model.axpo.num_val_samples=4",
    "model.axpo.length_params.max_length=32", f"model.encoder_seq_length={MAX_ROW_TOKENS}",
    "model.axpo.tools.names=[image_zoom_in]", "~model.axpo.tools.instructions",
    "+model.axpo.tools.observation='image {index}:'", "+model.axpo.tools.max_error_chars=24",
    "model.global_batch_size=8", "model.micro_batch_size=4", "model.tensor_model_parallel_size=1",
    "model.sequence_parallel=False", "model.transformer_engine=False", "model.activations_checkpoint_granularity=null",
    "model.optim.name=adamw", "exp_manager.create_tensorboard_logger=False",
)  # fmt: skip


def run_entry(study, run, checkpoint, *keys, num_ranks=2):
    """The entry script under torchrun, from a directory of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    own = (
        f"trainer.devices={num_ranks}", f"exp_manager.explicit_log_dir={run}",
        f"pretrained_checkpoint.restore_from_path={checkpoint}",
    )  # fmt: skip
    return subprocess.run(
        [*torchrun, str(ENTRY), str(study / "handles"), *KEYS, *own, *keys],
        cwd=study, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def serving(*urls):
    return f"model.axpo.engine.servers=[{','.join(urls)}]"


@pytest.fixture(scope="module")
def server_arguments(served_checkpoint):
    return ("--checkpoint", str(served_checkpoint), "--max-model-len", str(MAX_ROW_TOKENS), "--max-num-seqs", "16")


@pytest.fixture(scope="module")
def run(served_checkpoint, server_arguments, tmp_path_factory):
    """Two steps of two replicas, each with a server of its own."""
    study = tmp_path_factory.mktemp("trtllm")
    with ServerProcess(SERVER, *server_arguments) as first, ServerProcess(SERVER, *server_arguments) as second:
        keys = ("trainer.axpo.trt_llm.enable=True", serving(first.url, second.url))
        done = run_entry(study, study / "run", served_checkpoint, *keys)
    assert done.returncode == 0, done.stderr[-4000:]
    return study / "run"


def test_every_step_samples_on_the_servers_resamples_and_trains(run):
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["rollout/tool_use"] > 0 and row["update/grad_norm"] > 0 for row in rows)
    assert sum(row["rollout/num_resamples"] for row in rows) > 0, "some question must be triggered"
    assert all((row["engine/servers"], row["engine/servers_up"], row["engine/lost"]) == (2, 2, 0) for row in rows)
    assert "eval/pass@1" in rows[1] and evaluation(run).keys() == {"initial", "final"}


def test_the_update_is_refitted_and_proven(run):
    rows = metrics(run)
    assert all(row["engine/logprob_diff_max"] < 2e-5 for row in rows), "servers sample what is trained"
    assert rows[1]["sync/proof"] < 2e-5


def test_the_tool_returns_pictures_that_the_servers_are_shown(run):
    """A call that succeeds returns one, and the rollout goes on with it."""
    assert all(row["tool/image_zoom_in_errors"] < 1 and row["rollout/turns"] > 1 for row in metrics(run))


@pytest.mark.parametrize(
    ("dialect", "keys", "expected"),
    [
        ("no_token_ids", ("trainer.axpo.trt_llm.enable=True",), "cannot be used for training"),
        ("complete", ("trainer.axpo.trt_llm.enable=False",), "engine.servers must name vLLM servers"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_training(
    dialect, keys, expected, served_checkpoint, server_arguments, tmp_path
):
    with ServerProcess(SERVER, *server_arguments, "--dialect", dialect) as server:
        done = run_entry(tmp_path, tmp_path / "run", served_checkpoint, *keys, serving(server.url), num_ranks=1)
    assert done.returncode != 0 and expected in done.stderr
    assert "trt_llm.enable" in done.stderr and not (tmp_path / "run" / "metrics.jsonl").exists()
