"""The whole path: warm start, training, report; and GRPO beside AXPO."""

from __future__ import annotations

import json

from tiny_runs import AXPO, NUM_STEPS, evaluation, metrics, reproducible, succeed, train, trees

from nemo_axpo.config.load import load_saved_config
from nemo_axpo.run_directory import changed_keys

METRICS = {
    "rollout": "accuracy tool_use tool_accuracy direct_accuracy all_wrong all_wrong_after recovery num_rollouts "
    "num_resamples tokens turns truncated",
    "update": "loss policy_loss kl clip_fraction ratio_mean entropy grad_norm lr num_loss_tokens num_samples",
    "engine": "logprob_diff_mean logprob_diff_max kl ratio_mean ratio_max",
    "sync": "seconds bytes bytes_per_s buckets bucket_mib proof proof_s",
    "time": "rollout_s update_s sync_s step_s",
    "batch": "padding sharing imbalance",
    "memory": "peak_gib",
}
EVALUATION = {"pass@1", "pass@2", "tool_use", "tool_accuracy", "direct_accuracy", "all_wrong", "tokens", "truncated"}


def test_the_warm_start_is_measured(checkpoint):
    rates = json.loads((checkpoint.parent / "warm_start.json").read_text())
    assert 0.2 < rates["tool_use"] < 0.95 and rates["pass@4"] > 0
    assert len(metrics(checkpoint.parent)) == 40


def test_what_a_run_leaves(axpo):
    assert {"config.yaml", "metrics.jsonl", "evaluation.json", "rollouts", "images", "checkpoints", "hf"} <= {
        path.name for path in axpo.iterdir()
    }
    assert [path.name for path in sorted((axpo / "checkpoints").iterdir())] == [
        f"step_{step:05d}" for step in range(1, NUM_STEPS + 1)
    ]
    assert evaluation(axpo).keys() == {"initial", "final"}
    assert all(len(result["questions"]) == 6 for result in evaluation(axpo).values())


def test_metrics_of_every_step(axpo):
    rows = metrics(axpo)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    expected = {f"{room}/{name}" for room, names in METRICS.items() for name in names.split()} | {"step"}
    evaluated = expected | {f"eval/{name}" for name in EVALUATION}
    tools = {"tool/image_zoom_in_calls", "tool/image_zoom_in_errors", "time/image_zoom_in_p50_s", "time/image_zoom_in_p99_s"}
    assert tools <= rows[0].keys()
    untooled = [{name for name in row if not name.startswith(("tool/", "time/image_", "time/malformed"))} for row in rows]
    assert untooled == [expected, evaluated, expected]


def test_engine_and_trainer_agree(axpo, grpo):
    assert max(row["engine/logprob_diff_max"] for run in (axpo, grpo) for row in metrics(run)) < 1e-4


def test_axpo_resampled_and_learned_from_it(axpo):
    rows = metrics(axpo)
    assert sum(row["rollout/num_resamples"] for row in rows) > 0
    assert all(row["update/grad_norm"] > 0 for row in rows)
    triggered = [tree for step in range(1, NUM_STEPS + 1) for tree in trees(axpo, step) if tree["resamples"]]
    assert triggered and all(tree["triggered"] for tree in triggered)


def test_grpo_and_axpo_differ_by_one_word(axpo, grpo):
    changes = changed_keys(load_saved_config(grpo / "config.yaml"), load_saved_config(axpo / "config.yaml"))
    assert "algorithm.name: grpo -> axpo" in changes
    of_axpo_alone = ("algorithm.num_continuations: None ->", "algorithm.resample_ratio: None ->", "output_dir:")
    assert all(change.startswith(("algorithm.name", *of_axpo_alone)) for change in changes)


def test_grpo_and_axpo_explore_alike_in_the_first_step(axpo, grpo):
    assert evaluation(axpo)["initial"] == evaluation(grpo)["initial"]
    for ours, theirs in zip(trees(axpo, 1), trees(grpo, 1), strict=True):
        assert ours["question"] == theirs["question"] and ours["images"] == theirs["images"]
        assert [untrained(row) for row in ours["rollouts"]] == [untrained(row) for row in theirs["rollouts"]]
    ours, theirs = metrics(axpo)[0], metrics(grpo)[0]
    for name in ("accuracy", "tool_use", "tool_accuracy", "direct_accuracy", "all_wrong", "num_rollouts"):
        assert ours[f"rollout/{name}"] == theirs[f"rollout/{name}"]
    assert theirs["rollout/num_resamples"] == 0


def untrained(row):
    """What was sampled, in one piece: where it is cut and its advantages are the algorithm's."""
    text = "".join(segment["text"] for segment in row["segments"])
    return {name: row[name] for name in ("rollout_id", "reward", "status", "answer", "confidence")} | {"text": text}


def test_the_report_is_built(axpo, grpo, study, tmp_path):
    result = succeed("report", study, "--output", tmp_path)
    assert "report.html" in result.out
    html = (tmp_path / "report.html").read_text()
    assert "AXPO" in html and "GRPO" in html
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {run["algorithm"] for run in summary["runs"]} == {"axpo", "grpo"}
    assert {path.name for path in tmp_path.glob("*.png")} >= {"curves.png", "comparison.png", "tree.png"}


def test_the_same_run_twice_is_the_same(axpo, checkpoint, tmp_path):
    again = train(tmp_path / "again", *AXPO, checkpoint=checkpoint)
    assert reproducible(metrics(again)) == reproducible(metrics(axpo))
