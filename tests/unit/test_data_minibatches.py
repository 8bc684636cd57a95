"""Mini-batches of a step: whole questions, the same in every layout, and equally long replicas."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.data.minibatches import RowInfo, assign_rows, plan_minibatches, row_info
from nemo_axpo.types import TrainingSample


def rows_of(*sizes, cost=1.0, has_advantage=True):
    """Question i has ``sizes[i]`` rows of 3 trained tokens."""
    return [
        RowInfo(f"q{q}/{n}", f"q{q}", 3, has_advantage, cost) for q, size in enumerate(sizes) for n in range(size)
    ]


def plan(rows, *, num_minibatches=2, num_replicas=1, seed=0, drops=False):
    return plan_minibatches(
        rows, num_minibatches=num_minibatches, num_replicas=num_replicas, seed=seed, drops_without_advantage=drops
    )


def test_what_is_told_of_a_row():
    sample = TrainingSample("q/1", "q", (1, 2, 3), (False, True, True), (0.0, 0.5, 0.5), (0.0, -1.0, -1.0))
    assert row_info(sample, cost=lambda s: 10.0 * len(s.token_ids)) == RowInfo("q/1", "q", 2, True, 30.0)


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
