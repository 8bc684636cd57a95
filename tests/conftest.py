"""The option that records which engine suites ran here, for ``benchmarks/engine_status.py``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine-results", help="JSON file that says which engine suites ran here, and how they ended")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--engine-results")
    if path:
        from engine_results import EngineResults

        config.pluginmanager.register(EngineResults(path, arguments=config.invocation_params.args))
