"""The scripts answer --help and refuse what they do not know before they install anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launcher_scripts").glob("*.sh"))


def run_script(path, *arguments):
    return subprocess.run([path, *arguments], check=False, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help(path):
    done = run_script(path, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: launcher_scripts/{path.name}")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("quickstart.sh", ["--smok"], "unknown option --smok (see --help)"),
        ("quickstart.sh", ["--seed"], "--seed needs a value"),
        ("quickstart.sh", ["--device", "tpu"], "--device must be cpu or cuda; got tpu"),
        ("pipeline.sh", [], "only --tiny is one command"),
        ("pipeline.sh", ["--tiny", "--seed"], "--seed needs a value"),
        ("pipeline.sh", ["--large"], "unknown option --large (see --help)"),
        ("setup_env.sh", ["--what"], "unknown option --what"),
        ("test_trtllm.sh", [], "give --write DIR or --server URL (see --help)"),
        ("test_trtllm.sh", ["--server"], "--server needs a value (see --help)"),
    ],
)
def test_unknown_arguments(name, arguments, expected):
    done = run_script(ROOT / "launcher_scripts" / name, *arguments)
    assert done.returncode == 2 and expected in done.stderr


def test_an_old_python_is_refused_with_the_cure(tmp_path):
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python"):
        (tmp_path / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    command = [ROOT / "launcher_scripts" / "setup_env.sh", "--venv", str(tmp_path / "venv")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "Python 3.11 or newer is needed; got Python 3.9.1" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_launchers_stage_needs_the_launcher():
    command = [sys.executable, ROOT / "launcher_scripts" / "main.py", "stages=[axpo]", "launcher_scripts_path=/nowhere"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "must be launcher_scripts of a checkout of NeMo-Framework-Launcher" in done.stderr


@pytest.mark.slow
def test_the_study_is_queued_in_its_order(tmp_path):
    """Every command that scaling.sh would queue, played by sbatch: numbers go up, and nobody waits for a later job."""
    (tmp_path / "sbatch").write_text(
        f"#!/bin/bash\nn=$(($(cat {tmp_path}/n 2>/dev/null || echo 0) + 1))\necho $n >{tmp_path}/n\n"
        f'[[ $* == *--wrap* ]] && echo "$*" >{tmp_path}/table || cp "${{@: -1}}" {tmp_path}/$n.sbatch\necho $n\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    script, results = ROOT / "launcher_scripts" / "scaling.sh", tmp_path / "results"
    words = ["--cluster", "slurm", "--models", "/models", "--results", results, "--sizes", "2b", "--", "seed=3"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = subprocess.run([script, *words], env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    scripts = {n: (tmp_path / f"{n}.sbatch").read_text() for n in range(1, 8)}
    names = [re.search("--job-name=(.*)", scripts[n])[1] for n in range(1, 8)]
    assert names == ["sft_2b", "base_2b", "sft_2b", "grpo_2b", "grpo_2b", "axpo_2b", "axpo_2b"]
    after = [re.findall("--dependency=(.*)", scripts[n]) for n in range(1, 8)]
    assert after == [[], [], ["afterok:1"], ["afterok:1"], ["afterok:4"], ["afterok:1"], ["afterok:6"]]
    assert "model.path=" + str(results / "sft_2b" / "hf") in scripts[4] and "seed=3" in scripts[6]
    assert "--dependency=afterok:2:3:5:7" in (tmp_path / "table").read_text()
