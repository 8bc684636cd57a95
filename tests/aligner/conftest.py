"""The environment of the vLLM servers, and the policy that servers of the tests start with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "e2e"), str(TESTS / "contracts")]

from tiny_runs import warm_start

HEAD_DIM = 32
"""vLLM's attention kernel for CPUs takes no smaller one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vllm-python", help="Python of an environment with vLLM, for the tests with its servers")


@pytest.fixture(scope="session")
def vllm_python(request: pytest.FixtureRequest) -> str:
    """The interpreter of ``--vllm-python``."""
    python = request.config.getoption("--vllm-python", default=None)
    if not python:
        pytest.skip("servers of vLLM run in an environment of their own: launcher_scripts/test_aligner.sh --vllm")
    return python


@pytest.fixture(scope="session")
def served_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that calls the tool, of a width that vLLM takes."""
    return warm_start(tmp_path_factory.mktemp("served"), head_dim=HEAD_DIM)
