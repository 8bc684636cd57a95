"""The tree of one question as a record: N rollouts, frozen prefixes, K continuations, and who got which advantage.

A row is cut into segments wherever its kind, ``frozen``, ``trained`` or the advantage changes. Running example of
``nemo_axpo.types``: the selected source ``q7/3`` becomes

    prompt │ model (trained, +0.87) │ model (masked) │ observation │ model (masked)

and its continuation ``q7/3/k0``

    prompt │ model (frozen) │ model (trained, +0.71) │ observation │ model (trained, +0.71)

The trained part and the advantages are read off the :class:`TrainingSample` the actor gets, not derived a second time:
a wrong mask shows here as it is trained.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_axpo.algorithms.confidence import confidence_of
from nemo_axpo.types import (
    ImageId,
    ResamplePlan,
    Rollout,
    RolloutGroup,
    TextPart,
    TrainingSample,
)

PROMPT, MODEL, OBSERVATION = "prompt", "model", "observation"
IMAGE_MARK = "<|image_pad|>"
"""Stands once per image in a segment's text; ``num_tokens`` still counts every placeholder."""
_IMAGE_TOKENS = re.compile(r"(?:<\|image_pad\|>)+")


@dataclass(frozen=True)
class SegmentRecord:
    """A run of tokens of one row that were treated alike."""

    kind: str
    """``prompt``, ``model`` or ``observation``."""
    text: str
    images: tuple[ImageId, ...]
    num_tokens: int
    frozen: bool
    """Model tokens a continuation took over from its source."""
    trained: bool
    """Whether these tokens are in the loss."""
    advantage: float | None
    """None where nothing is trained."""


@dataclass(frozen=True)
class RowRecord:
    """One rollout or continuation."""

    rollout_id: str
    source_rollout_id: str | None
    """The rollout whose prefix this row continues; None for an ordinary rollout."""
    reward: float
    status: str
    answer: str | None
    uses_tool: bool
    confidence: float | None
    """Mean sampling probability of the first call, in [0, 1]; None without a call."""
    selected: bool
    """Whether the plan resamples this rollout's prefix."""
    segments: tuple[SegmentRecord, ...]

    @property
    def is_correct(self) -> bool:
        """Whether the verifier accepted the answer."""
        return self.reward > 0

    @property
    def advantage(self) -> float | None:
        """The one advantage of the row; None where no token of it is trained."""
        return next((segment.advantage for segment in self.segments if segment.trained), None)


@dataclass(frozen=True)
class TreeRecord:
    """One recorded group: a line of ``rollouts/step_XXXXX.jsonl``."""

    step: int
    question_id: str
    question: str
    answer: str
    images: tuple[ImageId, ...]
    triggered: bool
    """Whether every tool-using rollout was wrong (and there was one)."""
    rollouts: tuple[RowRecord, ...]
    resamples: tuple[RowRecord, ...]

    def continuations_of(self, rollout_id: str) -> tuple[RowRecord, ...]:
        """The K rows that continue one source's prefix."""
        return tuple(row for row in self.resamples if row.source_rollout_id == rollout_id)

    @property
    def all_images(self) -> tuple[ImageId, ...]:
        """Every image of the tree, each once, question images first."""
        rows = (*self.rollouts, *self.resamples)
        shown = (image for row in rows for segment in row.segments for image in segment.images)
        return tuple(dict.fromkeys((*self.images, *shown)))


# --------------------------------------------------------------------------------------------------- from records
def tree_record(
    group: RolloutGroup,
    *,
    step: int,
    plan: ResamplePlan,
    continuations: Sequence[Rollout],
    samples: Sequence[TrainingSample],
    decode: Callable[[Sequence[int]], str],
) -> TreeRecord:
    """The tree of one group; ``continuations`` and ``samples`` may be those of the whole step.

    ``decode``: token ids to text, special tokens kept (``ChatRenderer.decode``).
    """
    question = group.question
    sample_of = {sample.rollout_id: sample for sample in samples if sample.question_id == question.question_id}
    selected = {source.rollout_id for source in plan.sources}
    own = [rollout for rollout in continuations if rollout.question_id == question.question_id]

    def rows(rollouts: Sequence[Rollout]) -> tuple[RowRecord, ...]:
        return tuple(
            _row_record(r, sample=sample_of.get(r.rollout_id), selected=r.rollout_id in selected, decode=decode)
            for r in rollouts
        )

    text = "\n".join(p.text for m in question.messages for p in m.parts if isinstance(p, TextPart))
    return TreeRecord(
        step=step,
        question_id=question.question_id,
        question=text,
        answer=question.answer,
        images=question.image_ids,
        triggered=group.all_wrong,
        rollouts=rows(group.rollouts),
        resamples=rows(own),
    )


def choose_groups(
    groups: Sequence[RolloutGroup], *, continuations: Sequence[Rollout], max_groups: int
) -> tuple[RolloutGroup, ...]:
    """The groups most worth a look: recovered ones first, then other resampled ones, then the rest in order."""
    resampled = {rollout.question_id for rollout in continuations}
    recovered = {rollout.question_id for rollout in continuations if rollout.reward > 0}

    def rank(group: RolloutGroup) -> int:
        return 2 - (group.question.question_id in resampled) - (group.question.question_id in recovered)

    return tuple(sorted(groups, key=rank)[:max_groups])


def _row_record(
    rollout: Rollout, *, sample: TrainingSample | None, selected: bool, decode: Callable[[Sequence[int]], str]
) -> RowRecord:
    confidence = confidence_of(rollout)
    return RowRecord(
        rollout_id=rollout.rollout_id,
        source_rollout_id=rollout.prefix.source_rollout_id if rollout.prefix else None,
        reward=rollout.reward,
        status=str(rollout.status),
        answer=rollout.answer,
        uses_tool=rollout.uses_tool,
        confidence=None if math.isnan(confidence) else confidence,
        selected=selected,
        segments=tuple(_segments(rollout, sample=sample, decode=decode)),
    )


def _segments(
    rollout: Rollout, *, sample: TrainingSample | None, decode: Callable[[Sequence[int]], str]
) -> Iterator[SegmentRecord]:
    """Cuts the row into stretches alike; a stretch never crosses the end of a delta or a completion."""
    assert sample is None or sample.token_ids == rollout.token_ids, f"{rollout.rollout_id}: the sample of another row"
    start = 0
    for kind, token_ids, images, num_frozen in _stretches(rollout):
        labels = [_label(sample, start + i, frozen=i < num_frozen) for i in range(len(token_ids))]
        for label, run in itertools.groupby(range(len(token_ids)), key=labels.__getitem__):
            frozen, trained, advantage = label
            ids = [token_ids[i] for i in run]
            text = _IMAGE_TOKENS.sub(IMAGE_MARK, decode(ids))
            yield SegmentRecord(kind, text, images, len(ids), frozen, trained, advantage)
        start += len(token_ids)


def _stretches(rollout: Rollout) -> Iterator[tuple[str, tuple[int, ...], tuple[ImageId, ...], int]]:
    """(kind, token ids, images, number of leading frozen tokens) in row order."""
    num_frozen = len(rollout.prefix.completion.token_ids) if rollout.prefix else 0
    for index, turn in enumerate(rollout.turns):
        delta = turn.prompt_delta
        yield OBSERVATION if index else PROMPT, delta.token_ids, delta.image_ids, 0
        yield MODEL, turn.completion.token_ids, (), 0 if index else num_frozen


def _label(sample: TrainingSample | None, position: int, *, frozen: bool) -> tuple[bool, bool, float | None]:
    """(frozen, trained, advantage) of one token."""
    if sample is None or not sample.loss_mask[position]:
        return frozen, False, None
    return frozen, True, sample.advantages[position]


# ---------------------------------------------------------------------------------------------------------- files
def read_trees(path: Path) -> tuple[TreeRecord, ...]:
    """Trees of one step. ValueError naming file, line and cure where a line is not a tree record."""
    trees = []
    # Not splitlines(): model text may hold U+2028 and other separators, which JSON leaves as they are.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            trees.append(_parse_tree(line, where=f"{path}, line {number}"))
    return tuple(trees)


def _parse_tree(line: str, *, where: str) -> TreeRecord:
    try:
        fields = json.loads(line)
        rows = {name: tuple(_parse_row(row) for row in fields[name]) for name in ("rollouts", "resamples")}
        return TreeRecord(**{**fields, "images": tuple(fields["images"]), **rows})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"a rollout line is one tree record; {where} is not ({error}): delete the file") from error


def _parse_row(fields: Mapping[str, Any]) -> RowRecord:
    segments = tuple(SegmentRecord(**{**s, "images": tuple(s["images"])}) for s in fields["segments"])
    return RowRecord(**{**fields, "segments": segments})
