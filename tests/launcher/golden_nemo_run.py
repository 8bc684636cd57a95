"""What NeMo-Run would give to sbatch, as the golden files hold it; run it in NeMo-Run's environment to write them anew:

.venv-nemo-run/bin/python tests/launcher/golden_nemo_run.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launcher_scripts" / "nemo_run_job.py"
GOLDEN = Path(__file__).parent / "golden"
CLUSTER = ("--set", "account=account", "--set", "partition=batch", "--set", "mounts=[/lustre]")
JOBS = {
    "nemo_run_sft_8b.txt": ("sft", "--config-name", "recipes/sft_8b", "model.path=/lustre/models/policy",
                            "--output-dir", "/lustre/runs/sft_8b"),
    "nemo_run_axpo_8b.txt": ("train", "--config-name", "recipes/axpo_8b", "model.path=/lustre/models/policy",
                             "--output-dir", "/lustre/runs/axpo_8b", "job.tool_servers.num_nodes=1"),
}  # fmt: skip


def nemo_run_job(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The script in a directory of its own."""
    environment = {**os.environ, "NEMORUN_HOME": str(directory / "home"), "COLUMNS": "400",
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                   "PYTHONPATH": str(SCRIPT.parents[1])}  # fmt: skip
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, check=False, timeout=180
    )


def written_files(directory: Path, *arguments: str | Path) -> list[Path]:
    """A dry run; the script for sbatch, then those of the tasks."""
    done = nemo_run_job(directory, "--executor", "slurm", "--job-dir", directory / "jobs", "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (batch,) = directory.rglob("*_sbatch.sh")
    return [batch, *sorted(directory.rglob("scripts/*.sh"))]


def golden_text(name: str, directory: Path) -> str:
    """What of those files comes from here: not the rest of NeMo-Run's own script, nor what differs from call to call."""
    batch, *tasks = written_files(directory, *CLUSTER, "--", *JOBS[name])
    text = f"== {batch.name}\n{own_lines(batch.read_text('utf-8'))}"
    text += "".join(f"== {path.name}\n{path.read_text('utf-8')}" for path in tasks)
    return re.sub(r"nemo_axpo_\d+", "nemo_axpo_ID", text.replace(str(directory), "/DIR"))


def own_lines(text: str) -> str:
    """Options of the job, the lines between NeMo-Run's set-up and its first command, and the commands."""
    lines = text.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith("head_node_ip=")) + 1
    last = next(number for number, line in enumerate(lines) if line.startswith("# Command 1"))
    options = [line for line in lines[:first] if line.startswith("#SBATCH")]
    return "".join([*options, *lines[first:last], *(line for line in lines[last:] if line.startswith("srun "))])


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in JOBS:
        with tempfile.TemporaryDirectory() as directory:
            (GOLDEN / name).write_text(golden_text(name, Path(directory)), encoding="utf-8")
