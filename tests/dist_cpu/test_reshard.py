"""Training goes on with the same numbers from a checkpoint that another layout wrote, optimizer state included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "unit"), str(Path(__file__).parents[1])]

from forked import run_ranks
from megatron.core import dist_checkpointing
from reshard_worker import load_and_train, train_and_save
from tiny_qwen3_vl import tiny_config, tiny_model

WORKER = Path(__file__).parent / "reshard_worker.py"
ONE = "1,1,0,0,0"
"""tensor parallel, pipeline parallel, sequence parallel, distributed optimizer, bfloat16"""


def reshard(path: Path, layouts: dict[str, str], *, tied: bool, one: str = ONE) -> tuple[dict, dict]:
    """What ``layouts`` saved, loaded and said on two ranks, and one process before and after each of them."""
    checkpoint, stores = path / "checkpoint", path / "stores"
    stores.mkdir()
    tiny_model(tiny_config(tied=tied, layers=4)).save_pretrained(checkpoint)
    alone = train_and_save(checkpoint, one, store=stores / "one")
    run = run_ranks(2, WORKER, checkpoint, stores, *(f"{name}={values}" for name, values in layouts.items()))
    assert run.returncode == 0, run.stderr[-3000:]
    results = torch.load(stores / "results.pt")
    for name in ("one", *layouts):
        again = path / "again" / f"{name} one"
        results["resumed"][name, "one"] = load_and_train(checkpoint, one, store=stores / name, again=again)
    for source, target in results["resumed"]:
        assert_same_files(path / "again" / f"{source} {target}", stores / source)
    return alone, results


def assert_same_files(again: Path, first: Path) -> None:
    """Whatever layout loaded it and saved it again: every weight and moment has come through bit by bit."""
    ours, theirs = (dist_checkpointing.load_plain_tensors(str(store / "step_00001")) for store in (again, first))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), again.name


def assert_equal(result: dict, expected: dict, *, names: object) -> None:
    for ours, theirs in zip(result["metrics"], expected["metrics"], strict=True):
        # Padding and sharing follow from which rows run together, and that from the layout.
        expected_values = {name: value for name, value in theirs.items() if not name.startswith("batch/")}
        assert {name: ours[name] for name in expected_values} == pytest.approx(expected_values, rel=1e-5, abs=1e-6), (
            names
        )
    for key, tensor in expected["weights"].items():
        assert (result["weights"][key] - tensor).abs().max() < 1e-5, (names, key)


def assert_identical(result: dict, expected: dict, *, names: object) -> None:
    assert result["metrics"] == expected["metrics"], names
    assert all(torch.equal(result["weights"][key], tensor) for key, tensor in expected["weights"].items()), names


def check(path: Path, layouts: dict[str, str], *, tied: bool) -> None:
    """Every layout from every layout's checkpoint, and the errors every rank gets (both ranks of the last layout write)."""
    alone, results = reshard(path, layouts, tied=tied)
    for (source, target), result in results["resumed"].items():
        assert_equal(result, alone, names=(source, target))
        if source == target:
            assert_identical(result, results["saved"].get(source, alone), names=source)
    places = {*layouts, "one"}
    assert results["resumed"].keys() == {(source, target) for source in places for target in places}
    for full, full_async, truncated in results["told"]:
        for message in (full, full_async):
            assert "got rank 1:" in message and "File too large" in message
            assert "free some space and resume from the last good checkpoint" in message
        assert "a checkpoint must be what was written; got rank" in truncated and "__1_0.distcp has" in truncated
    # An error that ends one rank alone waits for nobody longer than it is told, and publishes nothing.
    assert results["rescued"] == [{"all": 1, "0": None}, {"all": 1, "1": None}]


def test_a_checkpoint_of_any_layout_continues_under_another(tmp_path):
    """TP2 and two replicas that share the optimizer's state, to and from each other and one process."""
    check(tmp_path, {"dp2_distributed": "1,1,0,1,0", "tp2": "2,1,0,0,0"}, tied=True)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_layout_of_two_ranks(tmp_path, tied):
    layouts = {
        "tp2": "2,1,0,0,0", "tp2_sp_async": "2,1,1,0,0", "pp2_distributed": "1,2,0,1,0",
        "dp2_distributed_async": "1,1,0,1,0", "dp2": "1,1,0,0,0", "pp2": "1,2,0,0,0",
    }  # fmt: skip
    check(tmp_path, layouts, tied=tied)


@pytest.mark.slow
def test_bfloat16_keeps_its_master_weights(tmp_path):
    """Whole and shared optimizer states hold the same masters (compared above); the same layout goes on identically."""
    layouts = {"dp2_distributed": "1,1,0,1,1", "dp2": "1,1,0,0,1", "tp2": "2,1,0,0,1"}
    alone, results = reshard(tmp_path, layouts, tied=True, one="1,1,0,0,1")
    for name in ("one", *layouts):
        assert_identical(results["resumed"][name, name], results["saved"].get(name, alone), names=name)
