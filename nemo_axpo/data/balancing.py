"""Work over replicas so that all finish at the same time: longest processing time first (LPT), by a heap.

LPT takes the items from the costliest to the cheapest and gives each to the part with the least so far (R. L. Graham,
Bounds on multiprocessing timing anomalies, 1969)::

    costs 9 6 4 4 1 over two parts:   9   | 6      9 4   | 6 4    9 4 | 6 4 1       largest 13, mean 12: imbalance 1/12

Where few items meet many parts this leaves up to a percent, which exchanges between the fullest and the emptiest part
remove.

Rows with a common beginning are cheaper in one part than in two, because a part computes the beginning once. They come as
chains: rows in packing order, each with the cost it shares with the row before it, so that a run of consecutive rows costs
its first row and what the others add.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

_GOOD_IMBALANCE = 5e-4
"""Exchanges stop here: what is left is far below what a cost model is worth."""


class ChainItem(Protocol):
    """One row of a chain."""

    cost: float
    """Alone."""
    shared: float
    """Part of ``cost`` that the row before in the chain has paid; 0 in a chain's first row."""


def balance(costs: Sequence[float], *, num_parts: int, equal_size: bool = False) -> list[list[int]]:
    """Indices of ``costs`` in ``num_parts`` parts of similar sums; deterministic, indices ascending.

    ``equal_size``: parts differ by at most one index, which leaves less to choose. There may be fewer items than parts.
    """
    order = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)  # stable: equal costs in order of index
    parts = _in_rounds(costs, order, num_parts) if equal_size else _to_the_emptiest(costs, order, num_parts)
    _exchange(parts, costs)
    for part in parts:
        part.sort()
    return parts


def imbalance(costs: Sequence[float], parts: Sequence[Sequence[int]]) -> float:
    """Largest part ÷ mean part - 1: how much longer the step takes than if all parts were equal. 0 without cost."""
    return imbalance_of_loads([sum(costs[index] for index in part) for part in parts])


def imbalance_of_loads(loads: Sequence[float]) -> float:
    """As :func:`imbalance`, of the parts' sums."""
    total = sum(loads)
    return max(loads) * len(loads) / total - 1.0 if total else 0.0


def balance_chains(
    chains: Sequence[Sequence[ChainItem]], *, num_parts: int, tolerance: float = 0.01
) -> list[list[tuple[int, int]]]:
    """Parts of ``(chain, item)``, ascending; whole chains if they balance within ``tolerance``, else runs of them.

    The costliest runs get shorter until all balance or are single items. Splitting a chain costs its shared beginning
    once more, so of all tries the one whose costliest part is cheapest is kept, and among equals the one with the fewest
    runs.
    """
    limit = sum(run_cost(chain) for chain in chains)
    best: tuple[float, list[list[tuple[int, int]]]] | None = None
    while True:
        runs = [(number, run) for number, chain in enumerate(chains) for run in split_chain(chain, limit=limit)]
        costs = [run_cost(chains[number][run.start : run.stop]) for number, run in runs]
        parts = balance(costs, num_parts=num_parts)
        loads = [sum(costs[index] for index in part) for part in parts]
        if best is None or max(loads) < best[0]:
            best = max(loads), [[(runs[index][0], item) for index in part for item in runs[index][1]] for part in parts]
        divisible = [(cost, chains[c][run[-1]]) for cost, (c, run) in zip(costs, runs) if len(run) > 1]
        if imbalance_of_loads(loads) <= tolerance or not divisible:
            return best[1]
        cost, last = max(divisible, key=lambda pair: pair[0])
        # One item less; at least a tenth less, so that long chains take tens of tries and not one per item.
        limit = min(cost - (last.cost - last.shared), 0.9 * cost)


def run_cost(run: Sequence[ChainItem]) -> float:
    """Cost of consecutive items computed together: the first alone, of the others what they do not share."""
    return sum(item.cost - item.shared for item in run) + (run[0].shared if run else 0.0)


def split_chain(chain: Sequence[ChainItem], *, limit: float) -> list[range]:
    """Runs of consecutive items, each as long as its cost stays within ``limit``; a costlier item is alone."""
    runs: list[range] = []
    cost = 0.0
    for index, item in enumerate(chain):
        cost += item.cost - item.shared
        if runs and cost <= limit:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
            cost = item.cost
    return runs


def _to_the_emptiest(costs: Sequence[float], order: Sequence[int], num_parts: int) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    heap = [(0, number) for number in range(num_parts)]
    for index in order:
        load, number = heap[0]
        parts[number].append(index)
        heapq.heapreplace(heap, (load + costs[index], number))
    return parts


def _in_rounds(costs: Sequence[float], order: Sequence[int], num_parts: int) -> list[list[int]]:
    """Every part gets one item a round, the emptiest one the costliest of it."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0.0] * num_parts
    for start in range(0, len(order), num_parts):
        by_load = sorted(range(num_parts), key=loads.__getitem__)
        for number, index in zip(by_load, order[start : start + num_parts]):
            parts[number].append(index)
            loads[number] += costs[index]
    return parts


def _exchange(parts: list[list[int]], costs: Sequence[float]) -> None:
    """Exchanges one item of the fullest part for one of the emptiest, in place, while that makes the fullest emptier."""
    loads = [sum(costs[index] for index in part) for part in parts]
    for _ in costs:
        full, empty = loads.index(max(loads)), loads.index(min(loads))
        if imbalance_of_loads(loads) <= _GOOD_IMBALANCE:
            return
        found = _best_exchange(parts[full], parts[empty], costs, gap=loads[full] - loads[empty])
        if found is None:
            return
        given, taken = found
        parts[full][parts[full].index(given)], parts[empty][parts[empty].index(taken)] = taken, given
        loads[full] -= costs[given] - costs[taken]
        loads[empty] += costs[given] - costs[taken]


def _best_exchange(
    full: Sequence[int], empty: Sequence[int], costs: Sequence[float], *, gap: float
) -> tuple[int, int] | None:
    """The pair that comes closest to halving ``gap``; None where none makes it smaller."""
    taken = sorted(empty, key=costs.__getitem__)
    values = [costs[index] for index in taken]
    best, found = gap / 2, None
    for given in full:
        place = bisect_left(values, costs[given] - gap / 2)
        for number in range(max(0, place - 1), min(place + 1, len(taken))):
            miss = abs(costs[given] - values[number] - gap / 2)
            if miss < best:
                best, found = miss, (given, taken[number])
    return found
