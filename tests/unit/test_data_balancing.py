"""Balancing: LPT's choices by hand, chains whose shared beginning is paid once per part, and properties of any input."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.data.balancing import (
    balance,
    balance_chains,
    imbalance,
    run_cost,
    split_chain,
)


@dataclass(frozen=True)
class ChainItem:
    cost: float
    shared: float = 0.0


COSTS = st.lists(st.integers(0, 50), max_size=30)


def test_the_example_of_the_module():
    costs = [4, 9, 1, 4, 6]
    parts = balance(costs, num_parts=2)
    # 9 | 6, then 4 (index 0) to 6, 4 (index 3) to 9, 1 to the part of 10
    assert parts == [[1, 3], [0, 2, 4]]
    assert imbalance(costs, parts) == pytest.approx(1 / 12)


def test_equal_costs_go_by_index():
    assert balance([5, 5, 5, 5], num_parts=2) == [[0, 2], [1, 3]]
    assert balance([2.0], num_parts=3) == [[0], [], []]
    assert balance([], num_parts=2) == [[], []] and imbalance([], [[], []]) == 0.0


def test_equal_size_gives_every_part_one_item_a_round():
    costs = [9, 1, 1, 1, 1, 1]
    assert balance(costs, num_parts=2) == [[0], [1, 2, 3, 4, 5]]
    # rounds (9 1) (1 1) (1 1): 9 1 1 against 1 1 1
    assert balance(costs, num_parts=2, equal_size=True) == [[0, 3, 5], [1, 2, 4]]
    # 3 | 2, then 1 to the emptier
    assert balance([3, 2, 1], num_parts=2, equal_size=True) == [[0], [1, 2]]


def test_an_exchange_removes_what_lpt_leaves():
    # LPT: 7 | 6, 5 to 6, 4 to 7, 3 to 11 (equal, first part): 7 4 3 | 6 5; giving 7 for 5 leaves 12 | 13
    assert balance([7, 6, 5, 4, 3], num_parts=2) == [[2, 3, 4], [0, 1]]


@given(COSTS, st.integers(1, 6), st.booleans())
def test_every_item_once_and_within_grahams_bound(costs, num_parts, equal_size):
    parts = balance(costs, num_parts=num_parts, equal_size=equal_size)
    assert sorted(index for part in parts for index in part) == list(range(len(costs)))
    assert all(part == sorted(part) for part in parts)
    loads, sizes = [sum(costs[i] for i in part) for part in parts], [len(part) for part in parts]
    # whatever part is the fullest, it was the emptiest when its cheapest item came: max <= mean + largest item
    assert max(loads) <= sum(costs) / num_parts + max(costs, default=0)
    assert not equal_size or max(sizes) - min(sizes) <= 1


CHAIN = [ChainItem(10), ChainItem(12, 8), ChainItem(11, 9), ChainItem(30, 5)]


def test_a_run_costs_its_first_row_and_what_the_others_add():
    assert run_cost(CHAIN) == 10 + 4 + 2 + 25
    assert run_cost(CHAIN[1:3]) == 12 + 2  # the second row now pays its whole beginning
    assert run_cost([]) == 0


def test_runs_stay_within_the_limit():
    assert split_chain(CHAIN, limit=41) == [range(4)]
    assert split_chain(CHAIN, limit=16) == [range(3), range(3, 4)]
    assert split_chain(CHAIN, limit=1) == [range(1), range(1, 2), range(2, 3), range(3, 4)]


def test_chains_that_balance_stay_whole():
    # three chains of 20, 10 and 10 on two parts: 20 | 10 10
    chains = [[ChainItem(15), ChainItem(15, 10)], [ChainItem(6), ChainItem(6, 2)], [ChainItem(10)]]
    assert balance_chains(chains, num_parts=2) == [[(0, 0), (0, 1)], [(1, 0), (1, 1), (2, 0)]]


def test_a_chain_is_split_where_that_is_faster():
    # one chain of 10 + 3·4 = 22; runs of at most 2/3 of it: 10 4 | 10 4 (the beginning of 6 is paid twice)
    chain = [ChainItem(10), ChainItem(10, 6), ChainItem(10, 6), ChainItem(10, 6)]
    assert balance_chains([chain], num_parts=2) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]


def test_a_chain_that_shares_everything_is_never_split_for_a_loss():
    # splitting would cost 10 | 10 at best, as much as the whole: the fewest runs win
    chain = [ChainItem(10), ChainItem(10, 10)]
    assert balance_chains([chain], num_parts=2) == [[(0, 0), (0, 1)], []]


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), max_size=6), st.integers(1, 4))
def test_splitting_is_never_slower_than_whole_chains(costs, num_parts):
    chains = [[ChainItem(c, min(c, group[i - 1]) // 2 if i else 0) for i, c in enumerate(group)] for group in costs]
    parts = balance_chains(chains, num_parts=num_parts)
    expected = [(number, item) for number, chain in enumerate(chains) for item in range(len(chain))]
    assert sorted(member for part in parts for member in part) == expected
    whole = [run_cost(chain) for chain in chains]
    slowest_whole = max(sum(whole[i] for i in part) for part in balance(whole, num_parts=num_parts))
    assert max(_load(part, chains) for part in parts) <= slowest_whole


def _load(part, chains):
    """Cost of a part: items that follow each other in a chain share."""
    members = set(part)
    return sum(chains[c][i].cost - (chains[c][i].shared if (c, i - 1) in members else 0.0) for c, i in part)
