"""What a benchmark's result says of its origin, and that it is written whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import environment
from timing import repeated


def test_a_command_is_shown_as_typed_without_paths_of_this_machine(monkeypatch):
    arguments = [str(ROOT / "benchmarks" / "x.py"), "--seeds", "1", "--note", "two words", "--output", "/tmp/x.json"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown = environment.command_line()
    assert shown == "OMP_NUM_THREADS=1 python benchmarks/x.py --seeds 1 --note 'two words' --output ..."


def test_a_commit_with_changes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() is None

    def git(*arguments: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *own, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for file in (tmp_path / "code.py", results / "x.json"):
        file.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD").strip()
    (results / "x.json").write_text("2")  # what a benchmark itself changes
    assert environment.commit() == head
    (tmp_path / "code.py").write_text("2")
    assert environment.commit() == f"{head}+changes"


def test_a_result_is_written_behind_its_origin(tmp_path):
    path = tmp_path / "new" / "x.json"
    environment.write_result(path, {"results": {"a": 1}}, packages=("torch", "not-a-package"))
    content = json.loads(path.read_text())
    assert list(content)[:4] == ["command", "commit", "date", "device"] and list(content)[-1] == "results"
    assert set(content["packages"]) == {"python", "torch"} and content["results"] == {"a": 1}
    environment.write_result(None, {})


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "x.json"
    environment.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        environment.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_what_runs_after_a_call_is_not_timed():
    calls = []
    taken = repeated(lambda: calls.append("call") or len(calls), repeats=2, after=lambda: calls.append("after"))
    assert calls == ["call", "after"] * 2 and [one.result for one in taken] == [1, 3]


@pytest.mark.parametrize("command", (["benchmarks/verifiers.py"], ["-m", "benchmarks.verifiers"]))
def test_benchmarks_run_as_scripts_and_as_modules(command):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--output" in done.stdout
