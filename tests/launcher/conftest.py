"""Where the launcher lies."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--launcher", type=Path, help="launcher_scripts of a checkout of NeMo-Framework-Launcher")


@pytest.fixture
def launcher(request):
    path = request.config.getoption("--launcher")
    assert path is not None and (path / "main.py").is_file(), "use launcher_scripts/test_launcher.sh"
    return path.resolve()
