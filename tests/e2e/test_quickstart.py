"""``nemo-axpo quickstart --smoke``: the whole path, as its script calls it."""

from __future__ import annotations

import json

import pytest
from tiny_runs import evaluation, metrics, nemo_axpo, succeed


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Directory of a finished one, and what it printed."""
    output = tmp_path_factory.mktemp("quickstart") / "smoke"
    return output, succeed("quickstart", "--smoke", "--output-dir", output).out


def test_it_says_where_it_is_and_what_came_out(smoke):
    _, printed = smoke
    landmarks = ["1/3  warm start", "2/3  reinforcement learning", "axpo: step 4/4", "3/3  report", "Pass@1", "done in"]
    positions = [printed.index(landmark) for landmark in landmarks]
    assert positions == sorted(positions)
    assert "what AXPO learns needs a run without --smoke" in printed


def test_what_it_leaves(smoke):
    output, _ = smoke
    for arm in ("grpo_n10", "axpo"):
        assert len(metrics(output / arm)) == 4 and evaluation(output / arm).keys() == {"initial", "final"}
    summary = json.loads((output / "summary.json").read_text())
    assert {run["name"] for run in summary["runs"]} == {"grpo_n10", "axpo"}
    names = "pass@1 pass@4 tool_use tool_accuracy direct_accuracy all_wrong recovered wall_s peak_memory_gib"
    assert all(set(names.split()) <= run.keys() for run in summary["runs"])
    assert (output / "report.html").stat().st_size > 10_000 and list(output.glob("*.png"))


def test_a_second_call_repeats_nothing(smoke):
    output, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/metrics.jsonl")}
    assert "step 4/4" not in succeed("quickstart", "--smoke", "--output-dir", output).out
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/metrics.jsonl")} == before


@pytest.mark.parametrize(("options", "change"), [(["--smoke", "--seed", "1"], "seed: 0 -> 1"), ([], "num_questions: 24")])
def test_it_does_not_mix_with_other_settings(smoke, options, change):
    output, _ = smoke
    result = nemo_axpo("quickstart", *options, "--output-dir", output)
    assert result.status == 2 and "must not hold another run" in result.err and change in result.err
