"""Rows over replicas so that all finish at the same time: longest processing time first, by a heap."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balance(costs: Sequence[float], *, num_parts: int) -> list[list[int]]:
    """Indices of ``costs`` in ``num_parts`` parts of similar sums; deterministic, indices ascending."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    heap = [(0.0, number) for number in range(num_parts)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, number = heapq.heappop(heap)
        parts[number].append(index)
        heapq.heappush(heap, (load + costs[index], number))
    return [sorted(part) for part in parts]
