"""Run directories are read as far as they go, and damage is named."""

import json

import pytest
from synthetic_runs import FINAL, START, write_run, write_study

from nemo_axpo.report.outcome import outcome
from nemo_axpo.report.runs import arms_of, find_runs, read_metrics, read_run


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 0.5}\n{"step": 2, "a": 0.7}\n{"step": 3, "a": 0.')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_broken_line_before_the_last_is_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a"\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is not: remove it"):
        read_metrics(path)


def test_a_step_written_twice_counts_once_with_its_last_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": 3}\n')
    assert [row["a"] for row in read_metrics(path)] == [1, 3]


def test_missing_values_leave_gaps_not_zeros(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": null}\n{"step": 2, "a": NaN}\n{"step": 3, "a": 0}\n')
    assert read_run(tmp_path).series("a") == ([3], [0])


def test_the_fields_come_from_the_saved_config(tmp_path):
    run = read_run(
        write_run(tmp_path / "run", algorithm="grpo", num_rollouts=10, seed=13, num_steps=5, planned_steps=9)
    )
    assert (run.algorithm, run.num_rollouts, run.seed, run.num_steps, run.last_step) == ("grpo", 10, 13, 9, 5)
    assert not run.is_finished


def test_where_a_run_stands_is_read_from_the_best_source(tmp_path):
    finished = read_run(write_run(tmp_path / "finished", num_steps=30))
    assert outcome(finished).source == "final evaluation"
    assert outcome(finished).values == {name: value for name, value in FINAL["axpo"].items() if value is not None}
    evaluated = read_run(write_run(tmp_path / "evaluated", num_steps=14, planned_steps=60))
    assert outcome(evaluated).source == "evaluation at step 10"
    young = read_run(write_run(tmp_path / "young", num_steps=4, planned_steps=60))
    assert outcome(young).source == "training steps 1–4"
    mean = sum(row["rollout/accuracy"] for row in young.metrics) / 4
    assert outcome(young).values["pass@1"] == pytest.approx(mean)


def test_evaluations_go_from_before_training_to_after_it(tmp_path):
    run = read_run(write_run(tmp_path / "run", num_steps=12))
    steps, values = run.evaluations("tool_use")
    assert steps == [0, 2, 4, 6, 8, 10, 12]
    assert (values[0], values[-1]) == (START["tool_use"], FINAL["axpo"]["tool_use"])


def test_names_of_an_evaluation_may_be_spelt_out(tmp_path):
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"initial": {"pass_at_1": 0.25, "pass_at_4": None, "questions": []}})
    )
    assert read_run(tmp_path).initial == {"pass@1": 0.25}


def test_a_study_is_found_below_its_directory(tmp_path):
    runs = find_runs([write_study(tmp_path, seeds=(10, 11), num_steps=6)])
    assert [run.name for run in runs] == ["axpo", "grpo_n10", "grpo_n8"] * 2
    arms = arms_of(runs)
    assert [(arm.label, len(arm.runs)) for arm in arms] == [("GRPO N=8", 2), ("GRPO N=10", 2), ("AXPO", 2)]


def test_two_runs_that_differ_in_something_else_carry_their_names(tmp_path):
    for name in ("axpo", "axpo_high_lr"):
        write_run(tmp_path / name, num_steps=3)
    assert {arm.label for arm in arms_of(find_runs([tmp_path]))} == {"axpo", "axpo_high_lr"}


def test_a_directory_named_twice_is_read_once(tmp_path):
    write_run(tmp_path / "run", num_steps=3)
    assert len(find_runs([tmp_path, tmp_path / "run"])) == 1


def test_nothing_to_report_says_what_was_looked_for(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="needs a run with at least one step.*found none in .*: train first"):
        find_runs([tmp_path])


def test_a_directory_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="absent is no directory: correct the path"):
        find_runs([tmp_path / "absent"])
