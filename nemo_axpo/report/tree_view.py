"""A tree record as the page shows it: every row a summary line and its text in coloured spans, pictures inlined."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from nemo_axpo.report.model_view import view_id
from nemo_axpo.report.tree_records import IMAGE_MARK, PROMPT, RowRecord, SegmentRecord, TreeRecord
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.types import ImageId

MAX_IMAGE_SIDE = 512
"""Longer sides are shrunk to this many pixels before they are inlined; the file in ``images/`` stays whole."""
SHOWN_WIDTH = {"question": 384, "inline": 128}
"""CSS pixels to which a small image is enlarged (by a whole factor, without smoothing) or a large one reduced."""
_MAX_FROZEN = 200
"""Characters of a frozen prefix repeated in each continuation."""
_MAX_BOILERPLATE = 400
"""Observations up to this many characters are set on one line."""
_SPECIAL = re.compile(r"(<\|[a-z_]+\|>|</?(?:think|tool_call|tool_response|tools|answer)>)")
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class BoxView:
    """A region a row zoomed into, as fractions of the first question image; drawn over it."""

    left: float
    top: float
    width: float
    height: float
    is_correct: bool
    is_continuation: bool
    label: str
    """Short name of the row; rows that chose the same region share a box."""


@dataclass(frozen=True)
class ImageView:
    """An inlined image; ``uri`` is empty where the file is missing."""

    uri: str
    width: int
    """CSS pixels."""
    height: int
    caption: str
    boxes: tuple[BoxView, ...] = ()


@dataclass(frozen=True)
class PieceView:
    """Part of a span: text, one special token, or an image at the place of its placeholder."""

    text: str = ""
    is_special: bool = False
    image: ImageView | None = None


@dataclass(frozen=True)
class SpanView:
    """A coloured stretch of tokens."""

    style: str
    """CSS class: ``prompt``, ``observation``, ``frozen``, ``masked``, ``gain``, ``loss`` or ``neutral``."""
    strength: float
    """Colour strength in [0, 1]: the size of the advantage."""
    title: str
    """What is said when the pointer rests on it."""
    pieces: tuple[PieceView, ...]


@dataclass(frozen=True)
class RowView:
    """One rollout or continuation."""

    name: str
    rollout_id: str
    is_correct: bool
    reward: str
    uses_tool: bool
    answer: str
    status: str
    """Empty for a row that simply answered."""
    confidence: float | None
    advantage: str
    """Signed number; empty where nothing is trained."""
    advantage_style: str
    selected: bool
    note: str
    spans: tuple[SpanView, ...]
    continuations: tuple[RowView, ...] = ()


@dataclass(frozen=True)
class TreeView:
    """One recorded group."""

    tree_id: str
    label: str
    """Entry of the picker."""
    run: str
    step: int
    question_id: str
    question: str
    answer: str
    outcome: str
    """What happened to the group, in one sentence."""
    images: tuple[ImageView, ...]
    rows: tuple[RowView, ...]


def tree_view(tree: TreeRecord, *, run_dir: Path, run: str, tree_id: str) -> TreeView:
    """Everything the page needs of one tree; images that are not on disk become a caption that says so."""
    rows = tuple(_row_view(row, tree=tree, run_dir=run_dir) for row in tree.rollouts)
    return TreeView(
        tree_id=tree_id,
        label=f"step {tree.step} · {tree.question_id} · {_short_outcome(tree)}",
        run=run,
        step=tree.step,
        question_id=tree.question_id,
        question=tree.question,
        answer=tree.answer,
        outcome=group_outcome(tree),
        images=_question_images(tree, run_dir=run_dir),
        rows=rows,
    )


# ---------------------------------------------------------------------------------------------------------- words
def group_outcome(tree: TreeRecord) -> str:
    """What happened to the group, in one or two sentences."""
    num_tool = sum(row.uses_tool for row in tree.rollouts)
    verb = "calls" if num_tool == 1 else "call"
    first = f"{share_right(tree.rollouts, noun='rollouts')}; {num_tool or 'none'} {verb} the tool"
    if not num_tool:
        return f"{first}: nothing to resample."
    if not tree.triggered:
        return f"{first}, not all of these wrong: an ordinary group."
    if not tree.resamples:
        return f"{first}, all wrong: triggered, but not resampled."
    right = share_right(tree.resamples, noun="continuations")
    return f"{first}, all wrong: resampled from the opening of the call. {right}."


def share_right(rows: Sequence[RowRecord], *, noun: str) -> str:
    """``1 of 4 continuations is right``."""
    num_right = sum(row.is_correct for row in rows)
    return f"{num_right} of {len(rows)} {noun} {'is' if num_right == 1 else 'are'} right"


def _short_outcome(tree: TreeRecord) -> str:
    if tree.resamples:
        return f"{sum(row.is_correct for row in tree.resamples)} of {len(tree.resamples)} continuations right"
    return "triggered, not resampled" if tree.triggered else "ordinary group"


def row_name(row: RowRecord) -> str:
    """The last part of the id: ``#3`` for a rollout, ``k0`` for a continuation."""
    tail = row.rollout_id.rsplit("/", 1)[-1]
    return tail if row.source_rollout_id else f"#{tail}"


def signed(advantage: float | None) -> str:
    """``+1.62``, ``−0.35`` (true minus), ``0``; empty where nothing is trained."""
    if advantage is None:
        return ""
    return f"{advantage:+.2f}".replace("-", "−") if round(advantage, 2) else "0"


def _note(row: RowRecord, *, tree: TreeRecord) -> str:
    """Why the row has the advantage it has."""
    if row.source_rollout_id:
        return "advantage among the continuations of this prefix (Eq. 2)"
    if not row.selected:
        return "plain GRPO advantage over the N rewards"
    if not tree.continuations_of(row.rollout_id):
        return "selected, but no continuation arrived: plain GRPO advantage"
    recovered = any(other.is_correct for other in tree.continuations_of(row.rollout_id))
    reward = "some continuation is right, so the prefix counts as right" if recovered else "no continuation is right"
    return f"selected: {reward} (Eq. 3–4); its own call and what follows are masked"


# ----------------------------------------------------------------------------------------------------------- rows
def _row_view(row: RowRecord, *, tree: TreeRecord, run_dir: Path) -> RowView:
    advantage = row.advantage
    return RowView(
        name=row_name(row),
        rollout_id=row.rollout_id,
        is_correct=row.is_correct,
        reward=f"{row.reward:g}",
        uses_tool=row.uses_tool,
        answer="no answer" if row.answer is None else row.answer,
        status="" if row.status == "answered" else row.status.replace("_", " "),
        confidence=row.confidence,
        advantage=signed(advantage),
        advantage_style=advantage_style(advantage),
        selected=row.selected,
        note=_note(row, tree=tree),
        spans=tuple(_span_view(s, run_dir=run_dir) for s in row.segments if s.kind != PROMPT),
        continuations=tuple(_row_view(k, tree=tree, run_dir=run_dir) for k in tree.continuations_of(row.rollout_id)),
    )


def advantage_style(advantage: float | None) -> str:
    """``gain``, ``loss``, ``neutral``, or ``masked`` where nothing is trained."""
    if advantage is None:
        return "masked"
    return "neutral" if round(advantage, 2) == 0 else "gain" if advantage > 0 else "loss"


def _span_view(segment: SegmentRecord, *, run_dir: Path) -> SpanView:
    style, title = _style_of(segment)
    # Advantages beyond 2.5 do not occur with N = 8; the root keeps small ones visible.
    strength = math.sqrt(min(abs(segment.advantage or 0.0) / 2.5, 1.0))
    images = [PieceView(image=_image_view(run_dir, image, shown="inline")) for image in segment.images]
    return SpanView(style, round(strength, 3), title, tuple(_pieces(_shown_text(segment), images=images)))


def _style_of(segment: SegmentRecord) -> tuple[str, str]:
    size = f"{segment.num_tokens} token{'s' if segment.num_tokens != 1 else ''}"
    if segment.trained:
        return advantage_style(segment.advantage), f"{size} · trained · advantage {signed(segment.advantage)}"
    if segment.frozen:
        return "frozen", f"{size} · frozen prefix, trained once, in its source"
    if segment.kind == "observation":
        return "observation", f"{size} · observation, not sampled by the model"
    return "masked", f"{size} · masked, no loss"


def _shown_text(segment: SegmentRecord) -> str:
    """The text with its line ends visible; only the end of a frozen prefix, which its source shows in full."""
    text = segment.text
    if segment.frozen and len(text) > 2 * _MAX_FROZEN:
        text = f"… {len(text) - _MAX_FROZEN} characters as in the source … {text[-_MAX_FROZEN:]}"
    is_boilerplate = segment.kind == "observation" and len(text) < _MAX_BOILERPLATE
    return re.sub(r"\n+", lambda ends: "⏎" * len(ends[0]) + ("" if is_boilerplate else "\n"), text)


def _pieces(text: str, *, images: Sequence[PieceView]) -> Iterator[PieceView]:
    """Cuts at special tokens; each placeholder becomes its image."""
    waiting = iter(images)
    for part in _SPECIAL.split(text.replace(f"<|vision_start|>{IMAGE_MARK}<|vision_end|>", IMAGE_MARK)):
        if part == IMAGE_MARK:
            yield next(waiting, PieceView(IMAGE_MARK, is_special=True))
        elif part:
            yield PieceView(part, is_special=bool(_SPECIAL.fullmatch(part)))
    yield from waiting


# --------------------------------------------------------------------------------------------------------- images
def _question_images(tree: TreeRecord, *, run_dir: Path) -> tuple[ImageView, ...]:
    """For each image of the question: what the model sees, then the full picture with the regions it zoomed into."""
    images = []
    for index, image in enumerate(tree.images):
        if RunDirectory(run_dir).image_path(view_id(image)).exists():
            images.append(_image_view(run_dir, image, shown="question", is_view=True))
        boxes = zoomed_boxes(tree) if index == 0 else ()
        images.append(_image_view(run_dir, image, shown="question", boxes=boxes))
    return tuple(images)


def _image_view(
    run_dir: Path, image_id: ImageId, *, shown: str, is_view: bool = False, boxes: tuple[BoxView, ...] = ()
) -> ImageView:
    path = RunDirectory(run_dir).image_path(view_id(image_id) if is_view else image_id)
    if not path.exists():
        return ImageView("", 0, 0, f"image {image_id[:12]} was not kept")
    uri, (width, height) = _data_uri(path, path.stat().st_mtime_ns)
    factor = SHOWN_WIDTH[shown] / width
    factor = max(1.0, math.floor(factor)) if factor >= 1 else factor
    caption = f"{width} × {height} pixels"
    if shown == "question":
        caption = f"what the model sees: {caption}" if is_view else f"full image, open to the tool: {caption}"
    return ImageView(uri, round(width * factor), round(height * factor), caption, boxes)


@lru_cache(maxsize=512)
def _data_uri(path: Path, _mtime_ns: int) -> tuple[str, tuple[int, int]]:
    """The file as a data URI, shrunk where it is large, and its true size."""
    with Image.open(path) as image:
        size = image.size
        small = image.convert("RGB")
    small.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    buffer, kind = io.BytesIO(), "png" if max(size) <= MAX_IMAGE_SIDE else "jpeg"
    small.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", size


# ---------------------------------------------------------------------------------------------------------- boxes
def zoomed_boxes(tree: TreeRecord) -> tuple[BoxView, ...]:
    """Regions of the first image that the resampled sources and their continuations zoomed into.

    Without continuations, those of every rollout. Rows with the same region and the same reward share a box.
    """
    sources = [row for row in tree.rollouts if tree.continuations_of(row.rollout_id)]
    rows = [*sources, *tree.resamples] if sources else list(tree.rollouts)
    merged: dict[tuple[tuple[float, ...], bool, bool], list[str]] = {}
    for row in rows:
        box = first_box(row)
        if box:
            merged.setdefault((box, row.is_correct, row.source_rollout_id is not None), []).append(row_name(row))
    return tuple(
        BoxView(x1 / 1000, y1 / 1000, (x2 - x1) / 1000, (y2 - y1) / 1000, right, continued, " ".join(names))
        for ((x1, y1, x2, y2), right, continued), names in merged.items()
    )


def first_box(row: RowRecord) -> tuple[float, float, float, float] | None:
    """``bbox_2d`` of the row's first call, 0–1000, clamped; None for a call without one or on another image."""
    call = first_call(row)
    arguments = call.get("arguments") if isinstance(call, Mapping) else None
    if not isinstance(arguments, Mapping) or arguments.get("img_idx", 0) != 0:
        return None
    box = arguments.get("bbox_2d")
    if not isinstance(box, Sequence) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        return None
    x1, y1, x2, y2 = (min(max(float(value), 0.0), 1000.0) for value in box)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def first_call(row: RowRecord) -> object:
    """The JSON of the row's first call; None where there is none or it does not parse."""
    match = _CALL.search("".join(segment.text for segment in row.segments if segment.kind == "model"))
    try:
        return json.loads(match[1]) if match else None
    except ValueError:
        return None
