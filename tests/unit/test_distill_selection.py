"""Which right trajectories are imitated: the share by hand, the limit per question, the same choice always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.distill.selection import Candidate, select, thinned


@pytest.mark.parametrize(
    ("num_tool", "num_direct", "share", "expected"),
    [
        (30, 30, 0.25, (10, 30)),  # 10 / 40
        (5, 30, 0.25, (5, 15)),  # 5 / 20
        (1, 30, 0.25, (1, 3)),
        (0, 30, 0.25, (0, 0)),  # no tool call at all: nothing has the wanted share
        (7, 0, 0.25, (0, 0)),
        (10, 10, 0.5, (10, 10)),
        (10, 10, 0.0, (0, 10)),
        (10, 10, 1.0, (10, 0)),
        (100, 10, 0.3, (4, 10)),  # 10 · 0.3 / 0.7 = 4.28…
        (3, 100, 0.3, (3, 7)),  # 3 · 0.7 / 0.3 = 7
    ],
)
def test_thinned_by_hand(num_tool, num_direct, share, expected):
    assert thinned(num_tool, num_direct, tool_share=share) == expected


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.05, 0.95))
def test_one_kind_stays_whole_and_the_share_is_met_within_one(num_tool, num_direct, share):
    tool, direct = thinned(num_tool, num_direct, tool_share=share)
    assert tool == num_tool or direct == num_direct
    assert abs(tool - share * (tool + direct)) <= 1
    assert 0 <= tool <= num_tool and 0 <= direct <= num_direct


def candidates(*kinds):
    """``"td"`` is a question with a trajectory with a tool call and one without."""
    return [
        Candidate(f"q{q}/{n}", f"q{q}", kind == "t")
        for q, question in enumerate(kinds)
        for n, kind in enumerate(question)
    ]


def kinds_of(chosen, pool):
    by_id = {candidate.trajectory_id: candidate for candidate in pool}
    return sorted("t" if by_id[name].uses_tool else "d" for name in chosen)


def test_questions_answered_in_both_ways_give_what_is_needed():
    pool = candidates(*["td"] * 20)
    assert kinds_of(select(pool, max_per_question=1, tool_share=0.25), pool) == ["d"] * 15 + ["t"] * 5
    assert (
        kinds_of(select(pool, max_per_question=2, tool_share=0.25), pool) == ["d"] * 20 + ["t"] * 6
    )  # 20 · (1/4) / (3/4)


def test_the_other_kind_is_thinned_where_one_is_scarce():
    pool = candidates("ttd", "ddd", "dd", "d", "d", "dt")  # at most one of each: two with a tool call, four without
    assert kinds_of(select(pool, max_per_question=1, tool_share=1 / 3), pool) == ["d"] * 4 + ["t"] * 2
    assert kinds_of(select(pool, max_per_question=1, tool_share=0.5), pool) == ["d"] * 2 + ["t"] * 2
    assert kinds_of(select(candidates("t", "t", "t", "t", "d", "d", "d"), max_per_question=1, tool_share=0.25),
                    candidates("t", "t", "t", "t", "d", "d", "d")) == ["d"] * 3 + ["t"]  # fmt: skip


def test_without_a_share_everything_within_the_limit_stays():
    pool = candidates("ttd", "ddd", "d")
    assert len(select(pool, max_per_question=2, tool_share=None)) == 5
    assert len(select(pool, max_per_question=9, tool_share=None)) == 7
    assert select([], max_per_question=1, tool_share=0.25) == set()


def test_the_choice_hangs_on_ids_and_seed_alone():
    pool = candidates(*["td"] * 20)
    first = select(pool, max_per_question=1, tool_share=0.25, seed=3)
    assert first == select(pool[::-1], max_per_question=1, tool_share=0.25, seed=3)
    assert first != select(pool, max_per_question=1, tool_share=0.25, seed=4)
