"""Group statistics and GRPO on hand-computed numbers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.algorithms.base import get_algorithm, register_algorithm
from nemo_axpo.algorithms.group_statistics import mean, normalized_advantages, sample_std
from nemo_axpo.algorithms.grpo import Grpo
from nemo_axpo.types import Credit, ResamplePlan, ResampleScore, RolloutScore, RowPart

rewards_lists = st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0]), min_size=1, max_size=12)


def test_sample_std_divides_by_n_minus_one():
    assert mean([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert sample_std([1.0, 0.0, 0.0, 0.0]) == 0.5
    assert sample_std([0.0, 2.0]) == pytest.approx(math.sqrt(2), abs=1e-15)


def test_advantages_of_one_correct_in_four():
    expected = [0.75 / (0.5 + 1e-6)] + [-0.25 / (0.5 + 1e-6)] * 3
    assert normalized_advantages([1.0, 0.0, 0.0, 0.0]) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("rewards", [[1.0], [0.0, 0.0], [0.1, 0.1, 0.1], [0.3] * 7])
def test_no_contrast_gives_exactly_zero(rewards):
    assert normalized_advantages(rewards) == (0.0,) * len(rewards)


@given(rewards_lists, st.randoms(use_true_random=False))
def test_advantages_do_not_depend_on_order(rewards, rng: random.Random):
    order = list(range(len(rewards)))
    rng.shuffle(order)
    shuffled = normalized_advantages([rewards[i] for i in order])
    assert shuffled == tuple(normalized_advantages(rewards)[i] for i in order)


def test_grpo_plans_nothing_and_credits_whole_rows():
    scores = [RolloutScore("q1", f"q1/{i}", float(i == 0), uses_tool=True, confidence=0.5) for i in (2, 0, 1, 3)]
    grpo = Grpo(num_questions=1, num_rollouts=4)
    assert grpo.plan(scores) == ResamplePlan()
    credits = grpo.credit(scores, grpo.plan(scores), ())
    low, high = -0.25 / (0.5 + 1e-6), 0.75 / (0.5 + 1e-6)
    assert credits == tuple(Credit(f"q1/{i}", RowPart.ALL, high if i == 0 else low) for i in range(4))


def test_grpo_normalises_within_each_question_and_over_the_rollouts_that_arrived():
    scores = [RolloutScore("q1", "q1/0", 1.0, False), RolloutScore("q2", "q2/0", 0.0, False)]
    scores += [RolloutScore("q2", "q2/3", 1.0, False)]
    credits = Grpo(num_questions=2, num_rollouts=4).credit(scores, ResamplePlan(), ())
    half = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert [credit.advantage for credit in credits] == pytest.approx([0.0, -half, half], abs=1e-15)


def test_grpo_refuses_continuations():
    with pytest.raises(AssertionError, match="no continuation"):
        Grpo(num_questions=1, num_rollouts=2).credit((), ResamplePlan(), (ResampleScore("q/0", "q/0/k0", 1.0),))


def test_duplicate_rollout_ids_are_refused():
    with pytest.raises(AssertionError, match="credited twice"):
        Grpo(num_questions=1, num_rollouts=2).credit([RolloutScore("q", "q/0", 1.0, False)] * 2, ResamplePlan(), ())


def test_registry_knows_its_names():
    assert get_algorithm("grpo") is Grpo
    with pytest.raises(ValueError, match="must be one of: axpo, grpo; got 'gprpo'"):
        get_algorithm("gprpo")
    with pytest.raises(ValueError, match="'grpo' is taken"):
        register_algorithm("grpo")(Grpo)


@pytest.mark.parametrize(("settings", "message"), [((0, 8), "got B=0"), ((4, 1), "got N=1")])
def test_grpo_refuses_groups_that_cannot_learn(settings, message):
    with pytest.raises(ValueError, match=message):
        Grpo(num_questions=settings[0], num_rollouts=settings[1])
