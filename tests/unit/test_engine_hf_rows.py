"""Cache rows keep their content while they move, and the prefix index finds exactly what rows hold."""

from __future__ import annotations

import random

import pytest
import torch

from nemo_axpo.engines.hf.kv_cache import KvCache
from nemo_axpo.engines.hf.prefix_index import PrefixIndex, chain_hashes
from nemo_axpo.engines.hf.rows import CacheRow, RowTable


def build_cache(num_rows: int) -> KvCache:
    return KvCache(
        num_rows, num_layers=2, num_kv_heads=2, head_dim=3, num_positions=5, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip


def write(cache: KvCache, row: CacheRow, value: float) -> None:
    """Fills all positions of ``row`` with ``value`` (keys) and ``-value`` (values)."""
    rows, positions = torch.full((5,), row.index), torch.arange(5)
    for layer in range(2):
        filled = torch.full((5, 2, 3), value + layer)
        cache.write(layer, rows_N=rows, positions_N=positions, keys_NHD=filled, values_NHD=-filled)


def holds(cache: KvCache, row: CacheRow, value: float, num_positions: int) -> bool:
    """Whether the first positions of ``row`` still hold what ``write`` put there."""
    for layer in range(2):
        keys, values = cache.read(layer, rows=slice(row.index, row.index + 1), num_positions=num_positions)
        if not ((keys == value + layer).all() and (values == -value - layer).all()):
            return False
    return True


@pytest.mark.parametrize("seed", range(10))
def test_content_follows_its_row(seed):
    rng = random.Random(seed)
    cache = build_cache(8)
    table = RowTable(cache)
    content: dict[CacheRow, float] = {}
    running: list[CacheRow] = []
    for step in range(60):
        claimed = []
        for _ in range(rng.randrange(0, 6 - len(running) + 1)):
            parked = [row for row in content if table.is_parked(row)]
            if parked and rng.random() < 0.5:
                row = rng.choice(parked)
                table.claim_parked(row)
            else:
                row = table.claim_unused(pinned=())
                content.pop(row, None)
            claimed.append(row)
        table.start(claimed)
        for row in claimed:
            if row not in content:
                content[row] = 100.0 * step + row.index
                row.num_cached = rng.randrange(1, 6)
                write(cache, row, content[row])
        running += claimed
        assert sorted(row.index for row in running) == list(range(len(running))) == list(range(table.num_running))
        ended = rng.sample(running, rng.randrange(0, len(running) + 1))
        running = [row for row in running if row not in ended]
        table.park(ended)
        assert sorted(row.index for row in running) == list(range(table.num_running))
        assert [row.index for row in table.rows] == list(range(8))
        assert all(holds(cache, row, value, row.num_cached) for row, value in content.items())


def test_least_recently_used_row_leaves_first():
    table = RowTable(build_cache(3))
    rows = [table.claim_unused(pinned=()) for _ in range(3)]
    table.start(rows)
    for row in rows:
        table.park([row])
    table.touch(rows[0])
    assert table.claim_unused(pinned={rows[1]}) is rows[2]
    assert table.claim_unused(pinned={rows[1], rows[0]}) is None
    assert table.claim_unused(pinned=()) is rows[1]


def find(index: PrefixIndex, keys: list[int]) -> tuple[CacheRow | None, int]:
    return index.find(keys, hashes=chain_hashes(keys), limit=len(keys))


def test_longest_common_prefix():
    index = PrefixIndex(min_shared_tokens=2)
    rows = [CacheRow(0), CacheRow(1)]
    for row, keys in zip(rows, ([1, 2, 3, 4, 5], [1, 2, 3, 9])):
        index.register(row, keys=keys, hashes=chain_hashes(keys))
    assert find(index, [1, 2, 3, 9, 9]) == (rows[1], 4)
    assert find(index, [1, 2, 3, 4, 8]) == (rows[0], 4)
    assert find(index, [1, 2, 7]) == (rows[0], 2)
    assert find(index, [1, 7]) == (None, 0)  # one token is not worth sharing
    assert find(index, [2, 3, 4, 5]) == (None, 0)  # the same tokens elsewhere are no prefix
    index.forget(rows[0], keep=2)
    assert find(index, [1, 2, 3, 4, 8]) == (rows[1], 3)
    index.forget(rows[1])
    assert find(index, [1, 2, 3, 9]) == (rows[0], 2)


@pytest.mark.parametrize("seed", range(5))
def test_finds_what_comparing_with_every_row_finds(seed):
    rng = random.Random(seed)
    index, held = PrefixIndex(min_shared_tokens=3), {CacheRow(number): [] for number in range(6)}
    for _ in range(200):
        row = rng.choice(list(held))
        if rng.random() < 0.3:
            keep = rng.randrange(0, 4)
            index.forget(row, keep=keep)
            held[row] = held[row][:keep]
        elif len(held[row]) < 12:
            held[row] = held[row] + [rng.randrange(2) for _ in range(rng.randrange(3, 6))]
            index.register(row, keys=held[row], hashes=chain_hashes(held[row]))
        wanted = [rng.randrange(2) for _ in range(10)]
        shared = {row: num_equal(keys, wanted) for row, keys in held.items()}
        found, length = find(index, wanted)
        longest = max(shared.values())
        assert length == (longest if longest >= 3 else 0)
        assert found is None if length == 0 else shared[found] == length


def num_equal(ours: list[int], theirs: list[int]) -> int:
    """Leading tokens that agree."""
    pairs = zip(ours, theirs)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def test_a_hash_collision_is_no_hit():
    index = PrefixIndex(min_shared_tokens=2)
    row = CacheRow(0)
    index.register(row, keys=[1, 2, 3], hashes=[7, 8, 9])
    assert index.find([1, 2, 4], hashes=[7, 8, 9], limit=3) == (row, 2)
    assert index.find([5, 2, 3], hashes=[7, 8, 9], limit=3) == (None, 0)
