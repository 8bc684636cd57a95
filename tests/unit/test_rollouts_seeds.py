"""Seeds are functions of their parts alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.seeds import ORIGINAL, derive_seed, turn_seed

GOLDEN = (7298157090468061258, 2704854824789132748, 2577540152609261996, 2213127008288332799)


def test_golden_values():
    assert derive_seed(0) == GOLDEN[0]
    assert derive_seed(17, "train", 3) == GOLDEN[1]
    assert turn_seed(17, question_id="q7", rollout=3, branch=ORIGINAL, turn=0) == GOLDEN[2]
    assert turn_seed(17, question_id="q7", rollout=3, branch=0, turn=0) == GOLDEN[3]


def test_another_process_with_another_hash_seed_agrees():
    code = "from nemo_axpo.rollouts.seeds import derive_seed; print(derive_seed(17, 'train', 3))"
    command = [sys.executable, "-c", code]
    assert int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) == GOLDEN[1]


def test_every_part_counts_and_parts_do_not_run_together():
    seeds = {
        turn_seed(seed, question_id=question, rollout=n, branch=branch, turn=turn)
        for seed in (0, 1)
        for question in ("q1", "q11")
        for n in range(3)
        for branch in (ORIGINAL, 0, 1)
        for turn in range(3)
    }
    assert len(seeds) == 2 * 2 * 3 * 3 * 3
    assert len({derive_seed("ab", "c"), derive_seed("a", "bc"), derive_seed("a", "b", "c"), derive_seed("abc")}) == 4
    assert len({derive_seed(1, 23), derive_seed(12, 3), derive_seed("1", 23), derive_seed(1, "23;")}) == 4


def test_seeds_are_signed_64_bit_and_spread():
    seeds = [derive_seed(i) for i in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 800 < sum(seed >= 2**62 for seed in seeds) < 1200


@pytest.mark.parametrize("name", ["max_new_tokens", "max_row_tokens", "max_turns", "max_time_s"])
def test_limits_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        RolloutLimits(**({"max_new_tokens": 5, "max_row_tokens": 10} | {name: 0}))


def test_a_turn_fits_its_row():
    with pytest.raises(ValueError, match=r"max_new_tokens \(11\) must not exceed max_row_tokens \(10\)"):
        RolloutLimits(max_new_tokens=11, max_row_tokens=10)
    assert RolloutLimits(max_new_tokens=5, max_row_tokens=10).max_turns == 3


def test_a_prompt_leaves_room_for_one_token_at_least():
    limits = RolloutLimits(max_new_tokens=5, max_row_tokens=10)
    assert limits.leaves_room(9) and not limits.leaves_room(10)
