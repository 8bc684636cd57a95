"""Which cache row already holds the keys and values of a token prefix.

Every position of a row has a chained hash of its token and all before it; at a placeholder the token is the image.
Two rows share a prefix of m tokens exactly where their m-th hashes meet (and the tokens are compared on every hit).
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_axpo.engines.hf.rows import CacheRow

MIN_SHARED_TOKENS = 8
"""Shorter matches are computed anew: waiting for a row still being filled costs more than eight tokens."""


def chain_hashes(keys: Sequence[int], *, previous: int = 0) -> list[int]:
    """Hash of every prefix of ``keys``, continuing the chain that ended in ``previous``."""
    return [previous := hash((previous, key)) for key in keys]


class PrefixIndex:
    """Maps prefix hashes to the rows holding them. ``min_shared_tokens`` above the longest row turns sharing off."""

    def __init__(self, *, min_shared_tokens: int = MIN_SHARED_TOKENS) -> None:
        self._rows: dict[int, list[CacheRow]] = {}
        self._min_shared_tokens = min_shared_tokens

    def find(self, keys: Sequence[int], *, hashes: Sequence[int], limit: int) -> tuple[CacheRow | None, int]:
        """The row with the longest common prefix of at most ``limit`` tokens, and its length; (None, 0) without one."""
        for length in range(limit, self._min_shared_tokens - 1, -1):
            for row in self._rows.get(hashes[length - 1], ()):
                if row.keys[:length] == keys[:length]:
                    return row, length
        return None, 0

    def register(self, row: CacheRow, *, keys: list[int], hashes: list[int]) -> None:
        """Announces that ``row`` holds ``keys``; what it held before must be a prefix of them."""
        if len(keys) >= self._min_shared_tokens:
            for value in hashes[len(row.hashes) :]:
                self._rows.setdefault(value, []).append(row)
            row.keys, row.hashes = keys, hashes

    def forget(self, row: CacheRow, *, keep: int = 0) -> None:
        """Withdraws all but the first ``keep`` tokens of ``row``."""
        for value in row.hashes[keep:]:
            holders = self._rows[value]
            holders.remove(row)
            if not holders:
                del self._rows[value]
        row.keys, row.hashes = row.keys[:keep], row.hashes[:keep]

    def clear(self) -> None:
        """Forgets every row."""
        self._rows.clear()
