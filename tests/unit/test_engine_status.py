"""The page of engines is what the committed results say, and says no more than they do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine_status():
    spec = importlib.util.spec_from_file_location("engine_status", ROOT / "benchmarks" / "engine_status.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_status"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_generated_from_the_committed_results(engine_status):
    page = (ROOT / "docs" / "engine_status.md").read_text(encoding="utf-8")
    assert page == engine_status.render(engine_status.read_records()), "run python benchmarks/engine_status.py"


def test_every_suite_that_a_path_names_exists(engine_status):
    for path in engine_status.PATHS:
        for suite in (*path.cpu, *path.gpu):
            file, name = suite.split("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"class {name}" in text or f"def {name}" in text, suite


def test_what_a_cell_says(engine_status):
    def record(**suites):
        return engine_status.Record("a.json", False, "CPU", "0123", suites)

    good, bad = record(one={"passed": 3}), record(two={"passed": 2, "failed": 1})
    assert engine_status.status((), [good]) == "—"
    assert engine_status.status(("one", "two"), [good]) == "written, not run"
    assert engine_status.status(("one",), [good]).startswith("ran: 3 tests passed, [a.json]")
    assert engine_status.status(("one", "two"), [good, bad]) == "**fails: 5 of 6 tests passed**"
    assert engine_status.status(("two",), [record(two={"passed": 2, "skipped": 1})]).startswith("**fails: 2 of 3")


def test_results_of_a_cpu_say_nothing_of_a_gpu(engine_status):
    path = engine_status.EnginePath("hf", "embedded", cpu=("one",), gpu=("one",))
    record = engine_status.Record("a.json", False, "CPU (x86_64)", "0" * 40, {"one": {"passed": 3}})
    assert "| ran: 3 tests passed, [a.json](../benchmarks/results/engines/a.json) | written, not run |" in (
        engine_status.render([record], [path])
    )
