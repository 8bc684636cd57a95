"""``nemo-axpo quickstart --smoke``: the whole path, as its script calls it."""

from __future__ import annotations

import json

import pytest
from tiny_runs import evaluation, metrics, run_command


@pytest.mark.slow
def test_smoke(tmp_path):
    output = tmp_path / "smoke"
    done = run_command("quickstart", "--smoke", "--output-dir", output)
    assert done.returncode == 0, done.stderr
    assert "1/3  warm start" in done.stdout and "report:" in done.stdout and "done in" in done.stdout
    for arm in ("grpo_n10", "axpo"):
        assert len(metrics(output / arm)) == 4 and evaluation(output / arm).keys() == {"initial", "final"}
    summary = json.loads((output / "summary.json").read_text())
    assert {run["name"] for run in summary["runs"]} == {"grpo_n10", "axpo"}
    expected = {"pass@1", "pass@4", "tool_use", "tool_accuracy", "direct_accuracy", "all_wrong", "recovered", "wall_s"}
    assert all(expected | {"peak_memory_gib"} <= run.keys() for run in summary["runs"])
    assert (output / "report.html").stat().st_size > 10_000

    again = run_command("quickstart", "--smoke", "--output-dir", output)
    assert again.returncode == 0 and "step 1/" not in again.stdout, "finished runs are not repeated"
    other = run_command("quickstart", "--smoke", "--seed", "1", "--output-dir", output)
    assert other.returncode == 2 and "must not hold another run" in other.stderr and "seed: 0 -> 1" in other.stderr
