"""What setup.py asks for is what the requirement files install, so what is tested is what a user gets."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemo_axpo.extras import EXTRAS

ROOT = Path(__file__).parents[2]
FILES = {
    "": ("cpu.txt",),
    "dev": ("cpu.txt", "dev.txt"),
    "nemo": ("cpu.txt", "aligner.txt"),
    "wandb": ("cpu.txt", "aligner.txt"),
    "vllm": ("cpu.txt", "vllm_cpu.txt"),
}
"""By extra, the files that its environment is made of, a later one over an earlier one; "": the package itself."""
UNTESTED = {"te", "trtllm"}
"""They need a GPU: no environment of ours has them."""
SAME = {"vllm": "vllm-cpu"}
"""The build for CPUs of a package."""


@cache
def declared():
    """Requirements by extra."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", found.update)
        runpy.run_path(str(ROOT / "setup.py"))
    extras = {"": found["install_requires"], **found["extras_require"]}
    return {extra: tuple(map(Requirement, lines)) for extra, lines in extras.items()}


@cache
def pins(extra):
    """Version by package of an extra's environment."""
    found = {}
    for name in FILES[extra]:
        lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
        exact = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
        found |= {canonicalize_name(package): version.split(";")[0].strip() for package, _, version in exact}
    return found


def test_every_extra_is_known():
    assert declared().keys() - {""} == FILES.keys() - {""} | UNTESTED and EXTRAS.keys() <= declared().keys()


@pytest.mark.parametrize("extra", FILES)
def test_what_is_pinned_satisfies_what_is_declared(extra):
    """The package's own requirements too: an extra must not contradict them."""
    for requirement in (*declared()[""], *declared()[extra]):
        name = canonicalize_name(SAME.get(requirement.name, requirement.name))
        assert name in pins(extra), f"{requirement} is in no requirement file of [{extra}]"
        assert requirement.specifier.contains(pins(extra)[name], prereleases=True), f"{requirement}: {pins(extra)[name]}"


@pytest.mark.parametrize("extra", [*FILES, *sorted(UNTESTED)])
def test_an_exact_pin_is_the_files(extra):
    """A version named in both places is one version."""
    for requirement in declared()[extra]:
        for specifier in requirement.specifier:
            if specifier.operator == "==" and extra not in UNTESTED:
                assert pins(extra)[canonicalize_name(requirement.name)] == specifier.version
