"""The scripts answer --help and refuse what they do not know before they install anything."""

from __future__ import annotations

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
        ("torchrun.sh", ["--nodes", "two"], "--nodes must be a number; got two"),
        ("torchrun.sh", ["--nodes"], "--nodes needs a value"),
        (
            "torchrun.sh",
            ["--nodes", "2", "--node-rank", "2", "--gpus", "8", "--address", "h", "--", "train"],
            "must lie below --nodes; got 2 of 2",
        ),
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


def test_the_nemo_run_script_says_how_nemo_run_is_installed():
    words = ["--executor", "local", "--dry-run", "--", "sft"]
    program = (
        "import runpy, sys; sys.modules['nemo_run'] = None; sys.argv[:] = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(ROOT / "launcher_scripts" / "nemo_run_job.py"), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "not installed: pip install nemo_run==0.11.1" in done.stderr, done.stderr


def test_the_launchers_stage_needs_the_launcher():
    command = [sys.executable, ROOT / "launcher_scripts" / "main.py", "stages=[axpo]", "launcher_scripts_path=/nowhere"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "must be launcher_scripts of a checkout of NeMo-Framework-Launcher" in done.stderr
