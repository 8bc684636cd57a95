"""``nemo-axpo eval --benchmark`` from end to end: the embedded world as somebody's own benchmark, the tiny model as the policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import nemo_axpo, succeed

NUM_QUESTIONS = 6
YAML = "name: world\ntitle: Embedded world\npath: questions.jsonl\nreader: schema\nverifiers: [exact_match]\nnum_questions: 6\n"
SEED = 1000003
SETTINGS = (
    "benchmarks.max_row_tokens=150", "benchmarks.max_new_tokens=32", "benchmarks.max_turns=3",
    "benchmarks.num_resamples=200", f"benchmarks.seed={SEED}",
)  # fmt: skip
PLAIN = (
    "benchmarks.temperature=1", "benchmarks.top_p=1", "benchmarks.top_k=0", "benchmarks.presence_penalty=0",
)  # fmt: skip


@pytest.fixture(name="benchmark", scope="module")
def benchmark_fixture(tmp_path_factory) -> Path:
    """One YAML file and the world's held-out questions as rows of the question schema."""
    directory = tmp_path_factory.mktemp("world")
    stream = ["--stream", "eval", f"seed={SEED}"]
    succeed("world-questions", "--output", directory, "--number", NUM_QUESTIONS, *stream)
    (directory / "world.yaml").write_text(YAML)
    return directory / "world.yaml"


def evaluate(checkpoint, benchmark, out, *settings, run=succeed):
    cache = f"data.cache_dir={benchmark.parent / 'cache'}"
    options = ["--checkpoint", checkpoint, "--benchmark", benchmark, "--output-dir", out]
    return run("eval", *options, cache, *SETTINGS, *settings)


def test_an_evaluation_its_interruption_and_its_table(checkpoint, benchmark, tmp_path):
    out = tmp_path / "out"
    shown = evaluate(checkpoint, benchmark, out, "--label", "0.1B random").out
    assert "| Pass@1 | Embedded world | Average |" in shown and "| 0.1B random |" in shown
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        "results.json", "table.md", "table.tex", "sizes.png", "world/records.jsonl", "world/settings.json",
    }  # fmt: skip
    result = json.loads((out / "results.json").read_text())
    (score,) = result["scores"]
    assert (score["num_questions"], score["num_open"], score["k"]) == (NUM_QUESTIONS, 0, 4)
    assert result["settings"]["presence_penalty"] == 1.5 and result["settings"]["temperature"] == 0.7
    records = (out / "world" / "records.jsonl").read_bytes()
    lines = [json.loads(line) for line in records.splitlines()]
    assert all(len(line["rollouts"]) == 4 for line in lines) and len(lines) == NUM_QUESTIONS
    assert score["calls"]["image_zoom_in"] > 0

    # Killed in the middle of a line: the same command asks what is missing, and the result is the same to the last bit.
    (out / "world" / "records.jsonl").write_bytes(records[: len(records) // 2])
    (out / "results.json").unlink()
    evaluate(checkpoint, benchmark, out, "--label", "0.1B random")
    assert json.loads((out / "results.json").read_text()) == result
    again = [json.loads(line) for line in (out / "world" / "records.jsonl").read_bytes().splitlines()]
    assert sorted(again, key=lambda line: line["question_id"]) == sorted(lines, key=lambda line: line["question_id"])

    # Two shards find the same answers, and the second one's table is of both.
    for number in (1, 2):
        evaluate(checkpoint, benchmark, tmp_path / "shards", "--shard", f"{number}/2", "--label", "0.1B random")
    sharded = json.loads((tmp_path / "shards" / "results.json").read_text())
    assert sharded["scores"] == result["scores"]

    succeed("table", out, tmp_path / "shards", "--output", tmp_path / "table")
    assert (tmp_path / "table" / "table.md").read_text().count("| 0.1B random |") == 4  # two models, two measures

    # Other settings are another evaluation.
    refused = evaluate(checkpoint, benchmark, out, "benchmarks.temperature=0.5", run=nemo_axpo)
    assert refused.status == 2
    assert "holds records made with other settings (temperature)" in refused.err


def test_it_asks_as_the_evaluation_of_a_run_does(checkpoint, benchmark, tmp_path):
    """The same questions under the same sampling and seed: the same answers, tools and rewards."""
    settings = (f"eval.num_questions={NUM_QUESTIONS}", "eval.num_rollouts=4", f"eval.seed={SEED}")
    succeed("eval", "--checkpoint", checkpoint, *settings, "--output", tmp_path / "held_out.json")
    held_out = json.loads((tmp_path / "held_out.json").read_text())["questions"]
    evaluate(checkpoint, benchmark, tmp_path / "out", *PLAIN)
    lines = (tmp_path / "out" / "world" / "records.jsonl").read_text().splitlines()
    records = {record["question_id"]: record["rollouts"] for record in map(json.loads, lines)}
    assert len(records) == NUM_QUESTIONS
    for question in held_out:
        rollouts = records[question["question_id"]]
        assert [rollout["answer"] for rollout in rollouts] == question["answers"]
        assert [rollout["reward"] for rollout in rollouts] == question["rewards"]
        assert [bool(rollout["tools"]) for rollout in rollouts] == question["uses_tool"]
    assert any(any(question["uses_tool"]) for question in held_out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("benchmarks.max_row_tokens=32768",), "benchmarks.max_row_tokens must not exceed engine.max_model_len"),
        (("--paper-row", "9B SFT"), "--paper-row must be a row of the paper's table"),
        (("--benchmark", "vstarr"), "--benchmark must name a benchmark"),
        (("rewards.sources.world=judge",), "a judge needs rewards.judge.url"),
        (("--output", "x.json"), "--benchmark needs --output-dir, and no --output"),
    ],
)
def test_what_cannot_work_is_told_at_once(checkpoint, benchmark, tmp_path, settings, message):
    refused = evaluate(checkpoint, benchmark, tmp_path / "out", *settings, run=nemo_axpo)
    assert refused.status == 2 and message in refused.err
    assert not (tmp_path / "out" / "world" / "records.jsonl").exists()


def test_a_judge_that_is_down_is_told_at_once(checkpoint, benchmark, tmp_path):
    judge = (
        "rewards.sources.world=judge", "rewards.judge.url=http://127.0.0.1:9/v1", "rewards.judge.model=m",
        "rewards.judge.key_variable=null", "rewards.judge.max_retries=0", "rewards.judge.cache_dir=null",
    )  # fmt: skip
    refused = evaluate(checkpoint, benchmark, tmp_path / "out", *judge, run=nemo_axpo)
    assert refused.status == 2 and "the verifier of 'world' is not available" in refused.err
