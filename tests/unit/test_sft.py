"""The warm start: its learning rate by hand, and what two real steps leave."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import read_rows, small_config

from nemo_axpo.sft import learning_rate, run_sft

SCHEDULE = ("sft.lr=0.1", "sft.num_steps=8", "sft.warmup_steps=4", "sft.min_lr_ratio=0.2")
TWO_STEPS = ("sft.num_steps=2", "sft.batch_size=4", "sft.lr=0.01", "sft.warmup_steps=2", "sft.min_lr_ratio=0.5")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, 0.1 * 0.25),  # a quarter of the warm-up; the cosine still at 1
        (2, 0.1 * 0.75 * 0.882843),  # (1 + cos 45°)/2 = 0.853553, and 0.2 + 0.8 · 0.853553
        (4, 0.1 * 0.6),  # halfway: (1 + cos 90°)/2 = 1/2, and 0.2 + 0.8/2
        (6, 0.1 * 0.317157),  # (1 + cos 135°)/2 = 0.146447, and 0.2 + 0.8 · 0.146447
        (7, 0.1 * 0.230448),  # (1 + cos 157.5°)/2 = 0.038060, and 0.2 + 0.8 · 0.038060
    ],
)
def test_learning_rate_by_hand(index, expected, tmp_path):
    assert learning_rate(small_config(*SCHEDULE, output_dir=tmp_path), index) == pytest.approx(expected, rel=1e-5)


def test_without_warm_up_it_begins_at_the_peak(tmp_path):
    config = small_config(*SCHEDULE, "sft.warmup_steps=0", output_dir=tmp_path)
    assert learning_rate(config, 0) == 0.1
    rates = [learning_rate(config, index) for index in range(8)]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0.02  # lr · min_lr_ratio is the limit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps from random weights, and what it returned."""
    path = tmp_path_factory.mktemp("sft") / "run"
    return path, run_sft(small_config(*TWO_STEPS, "eval.window_questions=3", output_dir=path))


def test_every_step_is_logged_with_its_learning_rate(run):
    rows = read_rows(run[0])
    assert [row["step"] for row in rows] == [1, 2]
    # Warm-up 1/2 at the peak; then (1 + cos 90°)/2 = 1/2 between the peak and half of it.
    assert [row["update/lr"] for row in rows] == pytest.approx([0.01 * 0.5, 0.01 * 0.75])
    assert [row["update/num_samples"] for row in rows] == [4, 4]
    assert all(row["update/loss"] > 0 and row["memory/peak_gib"] > 0.1 for row in rows)


def test_the_checkpoint_holds_trained_weights(run):
    path, returned = run
    assert returned == path / "hf"
    before, after = load_file(path / "random_weights" / "model.safetensors"), load_file(returned / "model.safetensors")
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > len(before) / 2


def test_it_is_measured_in_groups_of_n(run):
    rates = json.loads((run[0] / "warm_start.json").read_text())
    assert rates.keys() == {
        *("pass@1", "pass@2", "tool_use", "tool_accuracy", "direct_accuracy", "all_wrong", "tokens", "truncated")
    }
    assert rates["truncated"] == 1 and rates["tokens"] == 4  # max_new_tokens is 4, and two steps teach nobody to stop


def test_it_goes_on_from_a_checkpoint_and_may_stay_unmeasured(tiny_checkpoint, tmp_path):
    settings = (*TWO_STEPS, "sft.num_steps=1", "eval.window_questions=0")
    run_sft(small_config(*settings, output_dir=tmp_path / "run", checkpoint=tiny_checkpoint))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {".lock", "config.yaml", "metrics.jsonl", "hf"}
