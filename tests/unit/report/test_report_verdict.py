"""The words follow the numbers: no finding is claimed that they do not show."""

import json

import pytest
from rich.console import Console
from synthetic_runs import FINAL, START, write_run, write_study

from nemo_axpo.report.headline_table import headline_rows, print_summary
from nemo_axpo.report.runs import arms_of, find_runs, read_run
from nemo_axpo.report.summary import recovered_share, write_summary
from nemo_axpo.report.verdict import headline, verdict
from nemo_axpo.world.window import WarmStartWindow


def study(tmp_path, *, axpo, grpo, **kinds):
    write_run(tmp_path / "axpo", num_steps=4, final=FINAL["axpo"] | axpo, **kinds)
    write_run(tmp_path / "grpo_n8", algorithm="grpo", num_steps=4, final=FINAL["grpo"] | grpo)
    return find_runs([tmp_path])


def test_the_gap(tmp_path):
    runs = study(tmp_path, axpo={}, grpo={})
    assert headline(runs) == "GRPO loses the tool, AXPO learns it"
    assert verdict(runs) == (
        "AXPO learned the tool (tool use 27% → 100%); GRPO N=8 lost it (tool use 27% → 0%). "
        "AXPO's Pass@1 is 94%, 59 points above GRPO N=8 (35%). AXPO's Pass@4 is 97%, 49 points above GRPO N=8 (48%)."
    )


@pytest.mark.parametrize(
    ("axpo", "grpo", "title"),
    [
        (0.9, 0.9, "AXPO and GRPO both learn the tool"),
        (0.02, 0.05, "AXPO and GRPO both lose the tool"),
        (0.3, 0.4, "AXPO and GRPO both keep the tool"),
        (0.05, 0.9, "GRPO learns the tool, AXPO loses it"),
        (0.5, 0.0, "GRPO loses the tool, AXPO keeps it"),
    ],
)
def test_other_endings(tmp_path, axpo, grpo, title):
    assert headline(study(tmp_path, axpo={"tool_use": axpo}, grpo={"tool_use": grpo})) == title


def test_a_loss_and_a_draw_are_said_as_such(tmp_path):
    text = verdict(study(tmp_path, axpo={"pass@1": 0.30, "pass@4": 0.45}, grpo={"pass@1": 0.40, "pass@4": 0.47}))
    assert "AXPO's Pass@1 is 30%, 10 points below GRPO N=8 (40%)." in text
    assert "AXPO's Pass@4 is 45%, within 5 points of GRPO N=8 (47%)." in text


def test_an_unfinished_study_claims_nothing_in_its_title(tmp_path):
    runs = study(tmp_path, axpo={}, grpo={}, planned_steps=9)
    assert headline(runs) == "GRPO N=8 · AXPO over training"
    assert verdict(runs).endswith("Not finished: axpo at step 4 of 9; these numbers may still change.")


def test_a_single_run_is_told_by_its_change(tmp_path):
    write_run(tmp_path / "run", num_steps=4)
    assert verdict(find_runs([tmp_path])) == "AXPO: tool use 27% → 100%, Pass@1 28% → 94%, Pass@4 49% → 97%."


def test_seeds_are_counted(tmp_path):
    text = verdict(find_runs([write_study(tmp_path, seeds=(10, 11, 12), num_steps=4)]))
    assert "AXPO learned the tool (on 3 of 3 seeds, median tool use" in text


def test_recovery_weighs_steps_by_their_resamples(tmp_path):
    rows = [(1, 0.5, 8), (2, 0.0, 24), (3, 0.0, 0)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "rollout/recovery": r, "rollout/num_resamples": n}) + "\n" for s, r, n in rows)
    )
    assert recovered_share(read_run(tmp_path)) == 0.125


def test_summary_json_has_every_field(tmp_path):
    runs = find_runs([write_study(tmp_path / "study", num_steps=6)])
    write_summary(tmp_path / "summary.json", runs=runs)
    summary = json.loads((tmp_path / "summary.json").read_text())
    axpo = next(run for run in summary["runs"] if run["name"] == "axpo")
    assert axpo["algorithm"] == "axpo" and axpo["num_rollouts"] == 8 and axpo["seed"] == 10
    assert axpo["tool_use"] == 1.0 and axpo["direct_accuracy"] is None and axpo["peak_memory_gib"] == 1.4
    assert axpo["wall_s"] == pytest.approx(6 * 1.9) and 0 < axpo["recovered"] < 1
    assert {"pass@1", "pass@4", "tool_accuracy", "all_wrong"} <= set(axpo)
    assert summary["warm_start"]["seed"] == 10 and "in_window" in summary["warm_start"]
    assert summary["verdict"] == verdict(runs)


def test_the_window_bounds_tool_accuracy_by_the_runs_own_direct_accuracy():
    window = WarmStartWindow()
    assert all(window.checks(START).values())
    assert [name for name, ok in window.checks(START | {"tool_accuracy": 0.30}).items() if not ok] == ["tool_accuracy"]
    assert window.checks({"tool_use": 0.31}) == {"tool_use": False}


def test_the_table_fits_eighty_columns(tmp_path):
    runs = find_runs([write_study(tmp_path, seeds=(10, 11), num_steps=6)])
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(runs, console=console)
    text = console.export_text()
    assert "…" not in text and "GRPO N=10" in text and "AXPO learned the tool" in text


def test_a_range_stands_behind_the_median_only_where_seeds_differ(tmp_path):
    rows = {
        row.label: row.cells
        for row in headline_rows(arms_of(find_runs([write_study(tmp_path, seeds=(10, 11, 12), num_steps=4)])))
    }
    assert rows["GRPO N=8"][0] == "35%"
    assert rows["AXPO"][0].startswith("8") and "–" in rows["AXPO"][0]
