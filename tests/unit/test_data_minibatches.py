"""Mini-batches of a step: whole questions, the same in every layout, and equally long replicas."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.data.minibatches import (
    RowInfo,
    assign_rows,
    plan_minibatches,
    replica_loads,
    row_infos,
    select_rows,
)
from nemo_axpo.data.row_cost import RowCostModel
from nemo_axpo.types import TrainingSample


def rows_of(*sizes, cost=1.0, has_advantage=True):
    """Question i has ``sizes[i]`` rows of 3 trained tokens."""
    return [RowInfo(f"q{q}/{n}", f"q{q}", 3, has_advantage, cost) for q, size in enumerate(sizes) for n in range(size)]


def plan(rows, *, num_minibatches=2, num_replicas=1, seed=0, drops=False):
    return plan_minibatches(
        rows, num_minibatches=num_minibatches, num_replicas=num_replicas, seed=seed, drops_without_advantage=drops
    )


COST = RowCostModel(token=10, pair=2, output=100, patch=0, patch_pair=0, patches_per_token=4, image_token_id=-1)


def sample(name, *token_ids, question="q"):
    zeros = (0.0,) * (len(token_ids) - 1)
    return TrainingSample(name, question, token_ids, (False,) * len(zeros) + (True,), (*zeros, 0.5), (*zeros, -1.0))


def test_what_is_told_of_rows():
    # alone: 3 tokens and 6 pairs, 30 + 12 + 100; of 4 tokens 40 + 20 + 100; two shared tokens and their 3 pairs: 26
    rows = [sample("q/1", 1, 2, 4, 5), sample("p/0", 1, 2, 3, question="p"), sample("q/0", 1, 2, 3)]
    assert row_infos(rows, cost=COST) == [
        RowInfo("q/0", "q", 1, True, 142.0),
        RowInfo("q/1", "q", 1, True, 160.0, shared=26.0),
        RowInfo("p/0", "p", 1, True, 142.0),
    ]


def test_a_row_shares_with_the_last_one_that_stays():
    rows = [RowInfo(name, "q", 1, True, 100.0, shared) for name, shared in zip("abcd", (0.0, 50.0, 30.0, 60.0))]
    assert [row.shared for row in select_rows(rows, keeps=lambda row: row.rollout_id != "c")] == [0.0, 50.0, 30.0]
    assert [row.shared for row in select_rows(rows, keeps=lambda row: row.rollout_id in "bd")] == [0.0, 30.0]
    # a and c together: 100 + 70; b and d: 100 + 70
    replica_of = {"a": 0, "b": 1, "c": 0, "d": 1}
    assert replica_loads(rows, replica_of=replica_of, num_replicas=2) == [170.0, 170.0]


def test_a_minibatch_holds_whole_questions():
    first, second = plan(rows_of(2, 3, 1, 4))
    questions = [{row.split("/")[0] for row in part.replica_of} for part in (first, second)]
    assert not questions[0] & questions[1] and questions[0] | questions[1] == {"q0", "q1", "q2", "q3"}
    assert len(first.replica_of) + len(second.replica_of) == 10


def test_rows_without_advantage_are_counted_and_not_computed():
    rows = rows_of(2, 2) + [RowInfo("q9/0", "q9", 5, False, 1.0), RowInfo("q9/1", "q9", 7, False, 1.0)]
    (kept,), (dropped,) = plan(rows, num_minibatches=1), plan(rows, num_minibatches=1, drops=True)
    assert len(kept.replica_of) == 6 and kept.num_dropped_tokens == 0
    assert len(dropped.replica_of) == 4 and dropped.num_dropped_tokens == 12


def test_replicas_take_equally_long():
    rows = [RowInfo(f"q/{n}", "q", 1, True, cost) for n, cost in enumerate([9.0, 1.0, 4.0, 4.0, 6.0])]
    owner = assign_rows(rows, num_replicas=2)
    costs = [sum(row.cost for row in rows if owner[row.rollout_id] == replica) for replica in (0, 1)]
    assert list(owner) == [row.rollout_id for row in rows] and sorted(costs) == [11.0, 13.0]


@given(
    st.lists(st.integers(0, 5), max_size=8),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_every_row_is_trained_once_wherever_it_was_sampled(sizes, num_minibatches, num_replicas, seed, rng):
    rows = rows_of(*sizes)
    alone = plan(rows, num_minibatches=num_minibatches, seed=seed)
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    shared = plan(shuffled, num_minibatches=num_minibatches, num_replicas=num_replicas, seed=seed)
    for one, many in zip(alone, shared, strict=True):
        assert one.replica_of.keys() == many.replica_of.keys()
        assert sorted(row for replica in range(num_replicas) for row in many.rows_of(replica)) == sorted(one.replica_of)
    trained = [row for minibatch in shared for row in minibatch.replica_of]
    assert sorted(trained) == sorted(row.rollout_id for row in rows)


def test_a_question_stays_on_one_replica_unless_that_is_slower():
    shared = [0.0, 8.0, 8.0, 8.0]
    rows = [RowInfo(f"{q}/{n}", q, 1, True, 10.0, shared[n]) for q in "ab" for n in range(4)]
    assert [part.imbalance for part in plan(rows, num_minibatches=1, num_replicas=2)] == [0.0]
    owner = assign_rows(rows, num_replicas=2)
    assert {owner[f"a/{n}"] for n in range(4)} != {owner[f"b/{n}"] for n in range(4)} and len(set(owner.values())) == 2
    # one question of 16 on two replicas: 12 | 12 with the beginning paid twice
    owner = assign_rows(rows[:4], num_replicas=2)
    assert replica_loads(rows[:4], replica_of=owner, num_replicas=2) == [12.0, 12.0]
