"""Dockerfiles under hadolint, a binary that comes as a package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONTAINERS = Path(__file__).parents[2] / "containers"


@pytest.mark.launcher
@pytest.mark.parametrize("path", sorted(CONTAINERS.glob("*.Dockerfile")), ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path):
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
