"""One AXPO step on several gloo ranks, whichever way they share the model, and on one process: equal numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "unit")]

from axpo_step import axpo_samples
from layout_worker import run
from layouts import LAYOUTS, difference, launch, results, save_checkpoints

TOLERANCE = 1e-5
ALWAYS = ("tp2", "dp2")
RANKS_2 = tuple(name for name, layout in LAYOUTS.items() if layout.num_ranks == 2 and name not in ALWAYS)
RANKS_4 = tuple(name for name, layout in LAYOUTS.items() if layout.num_ranks == 4)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    return save_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def alone(checkpoints) -> dict[str, dict]:
    """One process."""
    return {name: run(str(path), LAYOUTS["one"]) for name, path in checkpoints.items()}


def check(checkpoints: dict[str, Path], names: tuple[str, ...], *, alone: dict[str, dict], num_ranks: int) -> None:
    launch(checkpoints.values(), names, num_ranks=num_ranks)
    for embeddings, path in checkpoints.items():
        for name in names:
            found = difference(results(path, name), alone[embeddings])
            assert found.within(TOLERANCE), (name, embeddings, found)


def test_the_step_holds_what_it_is_meant_to(alone):
    rows = {row.rollout_id: row for row in axpo_samples()}
    assert len(rows) == 15 + 3 + 2, "16 rollouts, one lost; 3 of 3, 2 of 3 and 0 of 3 continuations"
    source, whole = rows["q0/0"], rows["q0/1"]
    assert source.token_ids.index(80) == max(t for t, trained in enumerate(source.loss_mask) if trained), "cut off"
    assert whole.loss_mask[-1], "all of its continuations were lost: it keeps the credit of its whole row"
    prefix = source.token_ids[: source.token_ids.index(80) + 1]
    for number in range(3):
        row = rows[f"q0/0/k{number}"]
        assert row.token_ids[: len(prefix)] == prefix and not any(row.loss_mask[: len(prefix)])
    first, second, none = alone["tied"]["metrics"]
    assert 0 < first["update/clip_fraction"] < 1 and first["update/grad_norm"] > 0.5, "clipped both ways"
    assert second["update/kl"] > 1e-4 and none["update/num_samples"] == 0 and alone["tied"]["version"] == 2


def test_tensor_and_data_parallel_ranks_take_the_step_of_one_process(checkpoints, alone):
    check(checkpoints, ALWAYS, alone=alone, num_ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize(("names", "num_ranks"), [(RANKS_2, 2), (RANKS_4, 4)], ids=["2 ranks", "4 ranks"])
def test_every_layout_takes_the_step_of_one_process(checkpoints, alone, names, num_ranks):
    """Last run with every layout within 1e-5; the numbers are in docs/parallelism.md."""
    check(checkpoints, names, alone=alone, num_ranks=num_ranks)
