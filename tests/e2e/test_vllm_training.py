"""AXPO on the quickstart's world with vLLM as the engine: the policy's weights reach it after every step.

Runs in vLLM's own environment (launcher_scripts/test_vllm.sh).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

from tiny_runs import AXPO, NUM_STEPS, RUN, evaluation, metrics, run_command, run_ranks, trees, warm_start
from vllm_server_process import SERVED_MODEL, VllmServerProcess

pytestmark = pytest.mark.vllm

HEAD_DIM = 32
"""vLLM's attention kernel for CPUs takes no smaller one."""
MAX_ROW_TOKENS = 512
ENGINE = ("engine=vllm", "engine.vllm.kv_cache_mib=64", "engine.max_num_seqs=32")


@pytest.fixture(scope="module")
def vllm_checkpoint(tmp_path_factory):
    """A policy that calls the tool, of a width that vLLM takes."""
    return warm_start(tmp_path_factory.mktemp("vllm"), head_dim=HEAD_DIM)


def check_run(run: Path) -> None:
    """Every step is there, with resamples and pictures, and engine and trainer agreed in all of them."""
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    # A step trains on what the engine sampled with the weights of the step before: stale ones would show here.
    assert all(row["engine/logprob_diff_max"] < 1e-4 for row in rows)
    assert all(row["sync/proof"] < 2e-5 and row["sync/bytes"] > 0 and row["update/grad_norm"] > 0 for row in rows)
    assert sum(row["rollout/num_resamples"] for row in rows) > 0 and all(row["rollout/tool_use"] > 0 for row in rows)
    assert {"initial", "final"} == evaluation(run).keys()
    assert any(image for step in range(1, NUM_STEPS + 1) for tree in trees(run, step) for image in tree["images"])


def test_axpo_with_rollouts_from_vllm(vllm_checkpoint, tmp_path):
    run = tmp_path / "run"
    done = run_command("train", "--output-dir", run, f"model.path={vllm_checkpoint}", *RUN, *AXPO, *ENGINE)
    assert done.returncode == 0, done.stderr[-4000:]
    check_run(run)


def test_two_replicas_share_a_server(vllm_checkpoint, tmp_path):
    """One pushes, both sample."""
    run, log = tmp_path / "run", tmp_path / "server.log"
    with VllmServerProcess(vllm_checkpoint, log=log, max_model_len=MAX_ROW_TOKENS) as server:
        server.wait_until_up()
        engine = (
            "engine=vllm_server", f"engine.servers=['{server.url}']", f"engine.served_model={SERVED_MODEL}",
            f"engine.max_model_len={MAX_ROW_TOKENS}", f"rollout.max_row_tokens={MAX_ROW_TOKENS}",
        )  # fmt: skip
        done = run_ranks(2, "train", "--output-dir", run, f"model.path={vllm_checkpoint}", *RUN, *AXPO, *engine)
        assert done.returncode == 0, done.stderr[-4000:]
    check_run(run)
    for row in metrics(run):
        assert (row["engine/servers"], row["engine/servers_up"], row["engine/lost"], row["engine/retries"]) == (1, 1, 0, 0)


def test_the_doctor_passes(vllm_checkpoint):
    done = run_command("doctor", f"model.path={vllm_checkpoint}", *ENGINE)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "FAILED" not in done.stdout and "parity" in done.stdout


def test_several_ranks_are_refused(vllm_checkpoint, tmp_path):
    arguments = [f"model.path={vllm_checkpoint}", *RUN, *AXPO, *ENGINE]
    result = run_ranks(2, "train", "--output-dir", tmp_path / "run", *arguments)
    assert result.returncode != 0
    assert "samples in the process of a trainer of one rank" in result.stderr and "vllm_server" in result.stderr
