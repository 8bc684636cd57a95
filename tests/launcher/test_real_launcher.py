"""Dry runs of the real launcher with our stage: what it would queue, and that our keys survive its interpolation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_axpo.config.load import load_config
from nemo_axpo.launcher.nemo_keys import load_nemo_run

ROOT = Path(__file__).parents[2]


def dry_run(launcher, *arguments):
    command = [sys.executable, ROOT / "launcher_scripts" / "main.py", f"launcher_scripts_path={launcher}", *arguments]
    environment = {**os.environ, "NEMO_LAUNCHER_DEBUG": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.launcher
@pytest.mark.parametrize(("size", "nodes", "devices"), [("2b", 1, 4), ("4b", 1, 4), ("8b", 1, 8), ("32b", 4, 8)])
def test_a_stage_becomes_a_job(launcher, tmp_path, size, nodes, devices):
    model = "axpo.pretrained_checkpoint.restore_from_path=/models/sft"
    done = dry_run(launcher, "stages=[axpo]", f"axpo=qwen3_vl/{size}", f"base_results_dir={tmp_path}", model)
    assert done.returncode == 0, done.stderr
    folder, name = tmp_path / f"axpo_qwen3_vl_{size}", f"nemo-megatron-axpo_qwen3_vl_{size}"
    script = (folder / f"{name}_submission.sh").read_text()
    assert f"#SBATCH --nodes={nodes}\n" in script and f"#SBATCH --ntasks-per-node={devices}\n" in script
    assert f"--config-path={folder}" in script and "train_qwen3_vl_axpo_actor.py" in script
    run = load_nemo_run(folder / f"{name}_hydra.yaml")
    recipe = load_config(config_name=f"recipes/axpo_{size}")
    assert run.config.output_dir == str(folder / "results") and run.config.model.path == "/models/sft"
    assert (run.config.job, run.config.rollout, run.config.algorithm) == (recipe.job, recipe.rollout, recipe.algorithm)


@pytest.mark.launcher
def test_the_launchers_own_stages_still_work(launcher, tmp_path):
    done = dry_run(launcher, "stages=[training]", "training=gpt3/5b", f"base_results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*/*_submission.sh"))


@pytest.mark.launcher
def test_an_unknown_size_is_refused(launcher, tmp_path):
    done = dry_run(launcher, "stages=[axpo]", "axpo=qwen3_vl/9b", f"base_results_dir={tmp_path}")
    assert done.returncode != 0 and "qwen3_vl/9b" in done.stderr
