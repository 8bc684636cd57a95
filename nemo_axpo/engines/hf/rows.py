"""Cache rows and their physical order: running rows first, then parked rows (reusable) and free ones.

Invariant: rows ``0 … num_running - 1`` are running, so that one decode step is one contiguous batch. A row object keeps
its identity while its index moves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from nemo_axpo.engines.hf.kv_cache import KvCache


@dataclass(eq=False, slots=True)
class CacheRow:
    """One row of the KV cache and what it holds."""

    index: int
    num_cached: int = 0
    """Tokens whose keys and values are valid."""
    keys: list[int] = field(default_factory=list)
    """Announced content: token id, or the negative image number at a placeholder."""
    hashes: list[int] = field(default_factory=list)
    """Chained hash of each announced position."""


class RowTable:
    """All rows. ``claim*`` reserve rows for an admission, ``start`` makes them running, ``park`` ends them."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self.num_running = 0
        self.rows = [CacheRow(index) for index in range(cache.num_rows)]
        self._parked: dict[CacheRow, None] = {}
        self._free = list(reversed(self.rows))

    def is_parked(self, row: CacheRow) -> bool:
        """Whether ``row`` holds reusable content and is neither running nor claimed."""
        return row in self._parked

    def claim_parked(self, row: CacheRow) -> None:
        """Reserves a parked row together with its content."""
        del self._parked[row]

    def claim_unused(self, *, pinned: Collection[CacheRow]) -> CacheRow | None:
        """Reserves a free row, else the least recently used parked one outside ``pinned``; None where all are needed.

        The caller withdraws the row's old content from the prefix index.
        """
        row = self._free.pop() if self._free else next((row for row in self._parked if row not in pinned), None)
        if row is not None:
            self._parked.pop(row, None)
            row.num_cached = 0
        return row

    def touch(self, row: CacheRow) -> None:
        """Marks a parked row as used just now."""
        if row in self._parked:
            del self._parked[row]
            self._parked[row] = None

    def start(self, claimed: Sequence[CacheRow]) -> None:
        """Places claimed rows right behind the running ones, in this order, and counts them as running."""
        first, stop = self.num_running, self.num_running + len(claimed)
        members = set(claimed)
        vacated = [row.index for row in claimed if row.index >= stop]
        displaced = [row for row in self.rows[first:stop] if row not in members]
        self._place([*claimed, *displaced], indices=[*range(first, stop), *vacated])
        self.num_running = stop

    def park(self, finished: Sequence[CacheRow]) -> None:
        """Ends running rows: the last running rows fill the gaps, the ended rows stay reusable behind them."""
        num_left = self.num_running - len(finished)
        ended = set(finished)
        gaps = [row for row in finished if row.index < num_left]
        fillers = [row for row in self.rows[num_left : self.num_running] if row not in ended]
        indices = [row.index for row in gaps] + [row.index for row in fillers]
        self._place([*fillers, *gaps], indices=indices)
        self.num_running = num_left
        self._parked.update(dict.fromkeys(finished))

    def clear(self) -> None:
        """Frees every row; nothing may be running."""
        assert self.num_running == 0, f"{self.num_running} rows are running"
        self._parked.clear()
        for row in self.rows:
            row.num_cached, row.keys, row.hashes = 0, [], []
        self._free = list(reversed(self.rows))

    def _place(self, rows: Sequence[CacheRow], *, indices: Sequence[int]) -> None:
        """Moves ``rows`` to ``indices`` (a permutation of the places they take together), contents included."""
        moved = [(row, index) for row, index in zip(rows, indices, strict=True) if row.index != index]
        filled = [(row, index) for row, index in moved if row.num_cached]
        if filled:
            sources, targets = [row.index for row, _ in filled], [index for _, index in filled]
            self._cache.copy(sources, targets=targets, num_positions=max(row.num_cached for row, _ in filled))
        for row, index in moved:
            row.index = index
            self.rows[index] = row
