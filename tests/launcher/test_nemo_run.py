"""The NeMo-Run script with the real package: the text that sbatch would get, and a job on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launcher_scripts" / "nemo_run_job.py"


def nemo_run_job(tmp_path, *arguments):
    environment = {**os.environ, "NEMORUN_HOME": str(tmp_path / "home"), "COLUMNS": "400",
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                   "PYTHONPATH": str(SCRIPT.parents[1])}  # fmt: skip
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180
    )


@pytest.mark.nemo_run
def test_the_slurm_job(tmp_path):
    trained = ["train", "--config-name", "recipes/axpo_8b", "model.path=/lustre/sft", "engine.servers=[http://h:8000]"]
    cluster = ["--set", "account=a", "--set", "mounts=[/lustre]", "--job-dir", str(tmp_path / "jobs")]
    done = nemo_run_job(tmp_path, "--executor", "slurm", *cluster, "--dry-run", "--", *trained)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    for line in ("--account=a", "--nodes=1", "--ntasks-per-node=8", "--signal=USR1@900", "--requeue"):
        assert f"#SBATCH {line}" in text
    assert "/lustre:/lustre" in text and "--container-image nvcr.io#nvidia/nemo:26.02" in text
    assert text.index("head_node_ip=") < text.index("export MASTER_ADDR=$head_node_ip")
    (script,) = (path.read_text() for path in tmp_path.rglob("train/scripts/train.sh"))
    assert "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec nemo-axpo train" in script


@pytest.mark.nemo_run
def test_a_job_on_this_machine(tmp_path):
    done = nemo_run_job(
        tmp_path, "--executor", "local", "--", "plan", "--model-size", "2b", "--config-name", "recipes/sft_2b"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The job fits." in done.stdout + done.stderr
