"""Training steps whose rollouts come from servers, one of which is killed on the way: the canaries pass, every step has its
rollouts, and the metrics say what happened. The servers are ``trtllm_protocol_server.py``, not TensorRT-LLM.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from server_processes import ServerProcess
from shared_tensors import shared_file_device

from nemo_axpo.config.load import load_config
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.train import run_training
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

SCRIPT = "trtllm_protocol_server.py"
SETTINGS = (
    "engine=trtllm", "engine.dtype=float32", "engine.health_every_s=0.2", "engine.max_model_len=256",
    "algorithm=axpo", "algorithm.num_rollouts=4", "algorithm.num_continuations=2", "algorithm.resample_ratio=0.5",
    "data.num_questions_per_step=2", "train.num_steps=3", "train.eval_every=0", "eval.num_questions=2",
    "eval.num_rollouts=2", "rollout.max_new_tokens=16", "rollout.max_row_tokens=256", "rollout.max_time_s=600",
    "logging.tensorboard=false",
)  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    return save_tiny_checkpoint(tmp_path / "tiny", tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0)


def metrics_of(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def kill_after_step(server: ServerProcess, run: Path) -> None:
    """Kills the server when the first step is written."""
    while not metrics_of(run):
        time.sleep(0.02)
    server.kill()


def test_training_goes_on_without_a_killed_server(checkpoint, tmp_path, monkeypatch):
    devices = (shared_file_device(tmp_path),)
    monkeypatch.setattr("nemo_axpo.engines.trtllm.build.weight_devices", lambda: devices)
    run = tmp_path / "run"
    arguments = ("--checkpoint", str(checkpoint), "--max-model-len", "256", "--max-num-seqs", "16")
    with ServerProcess(SCRIPT, *arguments) as first, ServerProcess(SCRIPT, *arguments) as second:
        urls = f"engine.servers=['{first.url}','{second.url}']"
        paths = {"output_dir": str(run), "model.path": str(checkpoint)}
        threading.Thread(target=kill_after_step, args=(second, run), daemon=True).start()
        run_training(load_config([*SETTINGS, urls], settings=paths))
    rows = metrics_of(run)
    assert len(rows) == 3
    assert (rows[0]["engine/servers"], rows[0]["engine/servers_up"], rows[0]["engine/taken_out"]) == (2, 2, 0)
    assert rows[2]["engine/servers_up"] == 1
    assert sum(row["engine/taken_out"] for row in rows) == 1
    assert all(row["engine/lost"] == 0 and row["engine/requests"] >= 8 for row in rows)
    assert all(row["engine/logprob_diff_max"] < 2e-5 for row in rows)
