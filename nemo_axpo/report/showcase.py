"""Which recorded trees a report carries, and which of them it opens with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nemo_axpo.report.runs import RunRecord
from nemo_axpo.report.tree_records import TreeRecord, read_trees

CANDIDATES = 12
"""Trees of each run among which the most instructive one is looked for, however many runs there are."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class RecordedTree:
    """A tree with the run it is from."""

    run_dir: Path
    run: str
    tree: TreeRecord


def recorded_trees(runs: Sequence[RunRecord], *, max_trees: int) -> tuple[RecordedTree, ...]:
    """At most ``max_trees`` trees: the most instructive one of all runs, and an equal share for each run over its steps.

    A run whose trees hold continuations comes first; inside a step, what :func:`instructiveness` ranks first.
    """
    share = max(1, max_trees // max(1, sum(bool(run.rollout_files) for run in runs)))
    candidates = [_trees_of(run, max_trees=max(share, CANDIDATES)) for run in runs]
    best = showcase(itertools.chain.from_iterable(candidates))
    chosen = [tree for trees in candidates for tree in spread_over(trees, count=share)]
    if best is not None and best not in chosen:
        chosen.insert(0, best)
    chosen.sort(key=lambda recorded: not _has_resamples(chosen, run_dir=recorded.run_dir))
    return tuple(chosen[:max_trees])


def showcase(trees: Iterable[RecordedTree]) -> RecordedTree | None:
    """The tree that explains most at a glance; the earliest among equals."""
    return max(trees, key=lambda recorded: (instructiveness(recorded.tree), -recorded.tree.step), default=None)


def instructiveness(tree: TreeRecord) -> int:
    """Continuations that differ in outcome tell most, then a mixed group, then pictures, then a short list of rows."""
    num_right = sum(row.is_correct for row in tree.resamples)
    is_mixed = 0 < num_right < len(tree.resamples)
    outcomes = {(row.uses_tool, row.is_correct) for row in tree.rollouts}
    sources = {row.source_rollout_id for row in tree.resamples}
    return 8 * is_mixed + 4 * bool(tree.resamples) + len(outcomes) + bool(tree.images) + (len(sources) == 1)


def _trees_of(run: RunRecord, *, max_trees: int) -> list[RecordedTree]:
    files = spread_over(run.rollout_files, count=max_trees)
    per_file = max(1, max_trees // max(1, len(files)))
    chosen = []
    for path in files:
        trees = sorted(read_trees(path), key=instructiveness, reverse=True)[:per_file]
        chosen += [RecordedTree(run.path, run.name, tree) for tree in trees]
    return chosen


def spread_over(entries: Sequence[_T], *, count: int) -> list[_T]:
    """At most ``count`` entries, first and last among them, evenly between."""
    if len(entries) <= count:
        return list(entries)
    if count == 1:
        return [entries[-1]]
    return [entries[round(i * (len(entries) - 1) / (count - 1))] for i in range(count)]


def _has_resamples(trees: Sequence[RecordedTree], *, run_dir: Path) -> bool:
    return any(recorded.tree.resamples for recorded in trees if recorded.run_dir == run_dir)
