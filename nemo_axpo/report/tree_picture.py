"""One resampled question as a still picture: question → N rollouts → thinking prefix → K continuations.

Coordinates are inches from the lower left corner of a 16 × 9 inch canvas.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from nemo_axpo.report.model_view import view_id
from nemo_axpo.report.palette import GAIN, INK, LOSS, MUTED, RIGHT, SURFACE, WRONG, picture_style
from nemo_axpo.report.tree_records import IMAGE_MARK, RowRecord, TreeRecord
from nemo_axpo.report.tree_view import BoxView, first_call, group_outcome, row_name, share_right, signed, zoomed_boxes
from nemo_axpo.run_directory import RunDirectory

WIDTH, HEIGHT = 16.0, 9.0
_TOP, _BOTTOM = 7.55, 0.75
_PLAIN, _FROZEN = "#f6f8fa", "#e3e6ea"
_MAX_ROWS, _MAX_CARDS = 8, 8
_CHARACTER = 0.0084
"""Width of a character in inches per point of font size, on the wide side."""


@dataclass(frozen=True)
class Box:
    """A rectangle by its lower left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> tuple[float, float]:
        """Middle of the left edge."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        """Middle of the right edge."""
        return self.x + self.width, self.y + self.height / 2


def tree_figure(tree: TreeRecord, *, run_dir: Path) -> Figure:
    """The tree of one group; a group without continuations ends at its rollouts."""
    with picture_style():
        figure = plt.figure(figsize=(WIDTH, HEIGHT))
        axis = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axis.set_axis_off()
        axis.text(0.45, 8.5, _title(tree), fontsize=20, fontweight="bold", va="center")
        _draw_question(axis, tree, run_dir=run_dir)
        source = _source(tree)
        boxes = _draw_rollouts(axis, tree, source=source)
        if source:
            prefix = _draw_prefix(axis, source, origin=boxes[source.rollout_id])
            _draw_continuations(axis, tree, source=source, prefix=prefix, run_dir=run_dir)
        else:
            axis.text(8.85, _TOP, textwrap.fill(group_outcome(tree), 48), fontsize=15, va="top", linespacing=1.5)
        axis.text(0.45, 0.3, _legend(source), color=MUTED, fontsize=12, va="center")
    return figure


def _title(tree: TreeRecord) -> str:
    source = _source(tree)
    if not source:
        return f"One question, {len(tree.rollouts)} rollouts"
    num_tool = sum(row.uses_tool for row in tree.rollouts)
    subject = {1: "The only tool call is wrong", 2: "Both tool calls are wrong"}.get(num_tool)
    right = share_right(tree.continuations_of(source.rollout_id), noun="continuations")
    return f"{subject or f'All {num_tool} tool calls are wrong'}; AXPO resamples the call: {right}"


def _legend(source: RowRecord | None) -> str:
    colours = "A: advantage of every trained token in the box (blue positive, orange negative)"
    return (
        f"{colours}   ·   hatched: frozen, trained once, in its source   ·   dashed: masked, no loss"
        if source
        else colours
    )


def _source(tree: TreeRecord) -> RowRecord | None:
    """The resampled source whose continuations differ most in outcome."""

    def contrast(row: RowRecord) -> int:
        rewards = [other.is_correct for other in tree.continuations_of(row.rollout_id)]
        return min(sum(rewards), len(rewards) - sum(rewards))

    return max((row for row in tree.rollouts if tree.continuations_of(row.rollout_id)), key=contrast, default=None)


# -------------------------------------------------------------------------------------------------------- question
def _draw_question(axis: Axes, tree: TreeRecord, *, run_dir: Path) -> None:
    """Left column: the text, what the model sees, the full image with the boxes."""
    _heading(axis, 0.45, "question")
    lines = textwrap.wrap(tree.question, 38)
    text = "\n".join([*lines[:3], *(["…"] if len(lines) > 3 else [])])
    axis.text(0.45, _TOP, text, fontsize=13, va="top", linespacing=1.35)
    y = _TOP - 0.27 * text.count("\n") - 0.35
    axis.text(
        0.45, y, f"right answer: {shorten(tree.answer, width=3.6, size=13)}", fontsize=13, fontweight="bold", va="top"
    )
    pictures = list(_pictures(tree, run_dir=run_dir))
    top, max_height = y - 0.5, (y - 0.5 - _BOTTOM) / max(len(pictures), 1) - 0.6
    for path, caption, has_boxes in pictures:
        top = _draw_picture(
            axis, path, caption=caption, tree=tree if has_boxes else None, top=top, max_height=max_height
        )


def _pictures(tree: TreeRecord, *, run_dir: Path) -> Iterator[tuple[Path, str, bool]]:
    run = RunDirectory(run_dir)
    for image in tree.images[:1]:
        if run.image_path(view_id(image)).exists():
            yield run.image_path(view_id(image)), "what the model sees", False
        if run.image_path(image).exists():
            yield run.image_path(image), "full image, open to the tool", True


def _draw_picture(
    axis: Axes, path: Path, *, caption: str, tree: TreeRecord | None, top: float, max_height: float
) -> float:
    """Draws an image below ``top``, the zoomed regions of ``tree`` over it; returns where the next one may start."""
    pixels_HW3 = _pixels(path)
    height_px, width_px = pixels_HW3.shape[:2]
    scale = min(3.5 / width_px, min(max_height, 2.25) / height_px)
    box = Box(0.45, top - 0.3 - scale * height_px, scale * width_px, scale * height_px)
    axis.text(box.x, top, f"{caption} ({width_px} × {height_px})", fontsize=12, color=MUTED, va="top")
    _place(axis, pixels_HW3, box)
    for zoom in zoomed_boxes(tree) if tree else ():
        _draw_zoom(axis, zoom, box=box)
    return box.y - 0.3


def _draw_zoom(axis: Axes, zoom: BoxView, *, box: Box) -> None:
    """A region over the image in ``box``; a source's lies inside, so that a continuation's does not cover it."""
    colour, inset = RIGHT if zoom.is_correct else WRONG, 0.03 if zoom.is_continuation else 0.1
    x = box.x + zoom.left * box.width + inset
    y = box.y + (1 - zoom.top - zoom.height) * box.height + inset
    width, height = zoom.width * box.width - 2 * inset, zoom.height * box.height - 2 * inset
    axis.add_patch(Rectangle((x, y), width, height, edgecolor=SURFACE, linewidth=5, facecolor="none", zorder=4))
    dashes = "-" if zoom.is_continuation else (0, (3, 2))
    axis.add_patch(
        Rectangle((x, y), width, height, edgecolor=colour, linewidth=3, linestyle=dashes, facecolor="none", zorder=5)
    )
    label = {"boxstyle": "square,pad=0.25", "facecolor": colour, "edgecolor": "none"}
    place = {"va": "top"} if zoom.is_continuation else {"va": "bottom"}
    text_y = y + height - 0.07 if zoom.is_continuation else y + 0.07
    axis.text(x + 0.07, text_y, zoom.label, color=SURFACE, fontsize=10, bbox=label, zorder=6, **place)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _place(axis: Axes, pixels_HW3: np.ndarray, box: Box) -> None:
    extent = (box.x, box.x + box.width, box.y, box.y + box.height)
    axis.imshow(pixels_HW3, extent=extent, interpolation="nearest", aspect="auto", zorder=3)
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))


# -------------------------------------------------------------------------------------------------------- rollouts
def _draw_rollouts(axis: Axes, tree: TreeRecord, *, source: RowRecord | None) -> dict[str, Box]:
    """Second column; returns the box of each row drawn. The source is always among them."""
    x, width = 4.75, 3.55
    _heading(axis, x, f"{len(tree.rollouts)} rollouts")
    rows = list(tree.rollouts)
    if len(rows) > _MAX_ROWS:
        rows = [row for row in rows if row is not source][: _MAX_ROWS - bool(source)] + ([source] if source else [])
    pitch = (_TOP - _BOTTOM) / max(len(rows), _MAX_ROWS)
    boxes = {}
    for index, row in enumerate(rows):
        box = Box(x, _TOP - pitch * (index + 1) + 0.12, width, pitch - 0.12)
        _draw_row(axis, row, box=box, is_source=row is source)
        boxes[row.rollout_id] = box
    if len(rows) < len(tree.rollouts):
        axis.text(x + width, _TOP + 0.35, f"{len(rows)} shown", color=MUTED, fontsize=12, ha="right")
    return boxes


def _draw_row(axis: Axes, row: RowRecord, *, box: Box, is_source: bool) -> None:
    _panel(axis, box, face=_PLAIN if is_source else shade(row.advantage), edge=INK if is_source else None)
    _mark(axis, row, x=box.x + 0.22, y=box.left[1])
    kind = "tool" if row.uses_tool else "direct"
    answer = shorten(row.answer or row.status.replace("_", " "), width=1.2, size=13)
    axis.text(box.x + 0.48, box.left[1] + 0.15, f"{kind}: {answer}", fontsize=13, va="center")
    confidence = "" if row.confidence is None else f"  confidence {row.confidence:.2f}"
    axis.text(box.x + 0.48, box.left[1] - 0.16, f"{row_name(row)}{confidence}", fontsize=11, color=MUTED, va="center")
    label = "selected" if is_source else _advantage_text(row)
    axis.text(*_inside_right(box), label, fontsize=13, fontweight="bold", ha="right", va="center")


def _inside_right(box: Box) -> tuple[float, float]:
    return box.right[0] - 0.15, box.right[1]


# ---------------------------------------------------------------------------------------- prefix and continuations
def _draw_prefix(axis: Axes, source: RowRecord, *, origin: Box) -> Box:
    """Third column: the trained prefix of the source, between the height of its row and the middle."""
    prefix = next(segment for segment in source.segments if segment.kind == "model")
    lines = _wrapped(prefix.text, columns=22)
    shown = lines if len(lines) <= 8 else ["…", *lines[-7:]]
    x, width, height = 8.85, 2.55, 1.1 + 0.25 * len(shown)
    _heading(axis, x, "thinking prefix")
    box = Box(x, (origin.left[1] + (_TOP + _BOTTOM) / 2) / 2 - height / 2, width, height)
    y = box.y
    _connect(axis, origin.right, box.left, colour=INK)
    _panel(axis, box, face=shade(source.advantage), edge=INK)
    axis.text(
        x + 0.15,
        y + height - 0.2,
        "\n".join(shown),
        fontsize=11.5,
        family="DejaVu Sans Mono",
        va="top",
        linespacing=1.5,
    )
    axis.text(
        x + 0.15, y + 0.55, f"{prefix.num_tokens} tokens of {row_name(source)}", fontsize=11, color=MUTED, va="center"
    )
    axis.text(x + 0.15, y + 0.25, _advantage_text(source), fontsize=14, fontweight="bold", va="center")
    return box


def _wrapped(text: str, *, columns: int) -> list[str]:
    """Lines of at most ``columns`` characters; blank ones are dropped."""
    return [line for part in text.splitlines() if part.strip() for line in textwrap.wrap(part, columns)]


def _draw_continuations(axis: Axes, tree: TreeRecord, *, source: RowRecord, prefix: Box, run_dir: Path) -> None:
    """Fourth column: the source's own masked rest first, then each continuation."""
    x, width = 11.95, 3.65
    rows = [source, *tree.continuations_of(source.rollout_id)[:_MAX_CARDS]]
    num_left_out = len(tree.continuations_of(source.rollout_id)) + 1 - len(rows)
    more = f", {num_left_out} not shown" if num_left_out else ""
    _heading(axis, x, f"own call and {len(rows) - 1 + num_left_out} continuations{more}")
    pitch = (_TOP - _BOTTOM) / max(len(rows), 4)
    for index, row in enumerate(rows):
        box = Box(x, _TOP - pitch * (index + 1) + 0.14, width, pitch - 0.14)
        _connect(axis, prefix.right, box.left, colour=MUTED if row is source else GAIN, is_dashed=row is source)
        _draw_card(axis, row, box=box, is_masked=row is source, run_dir=run_dir)


def _draw_card(axis: Axes, row: RowRecord, *, box: Box, is_masked: bool, run_dir: Path) -> None:
    """One continuation: the picture its tool returned, its call, its answer, its advantage."""
    face = SURFACE if is_masked else shade(row.advantage)
    _panel(axis, box, face=face, edge=MUTED if is_masked else None, is_dashed=is_masked)
    if not is_masked:
        strip = Rectangle(
            (box.x, box.y), 0.13, box.height, facecolor=_FROZEN, edgecolor=MUTED, hatch="////", linewidth=0
        )
        axis.add_patch(strip)
    x = box.x + 0.25 + _draw_observed(axis, row, box=box, run_dir=run_dir)
    is_low, colour = box.height < 1.0, MUTED if is_masked else INK
    lines_y = box.y + box.height * np.array([0.7, 0.3] if is_low else [0.76, 0.5, 0.22])
    _mark(axis, row, x=x + 0.1, y=lines_y[0])
    answer = shorten(row.answer or row.status.replace("_", " "), width=1.3, size=13)
    axis.text(x + 0.3, lines_y[0], f"{row_name(row)}  {answer}", fontsize=13, va="center", color=colour)
    call = shorten(_call_words(row), width=box.x + box.width - x - 0.1, size=10.5)
    axis.text(x, lines_y[1], call, fontsize=10.5, color=MUTED, va="center")
    label = ("masked" if is_low else "masked, no loss") if is_masked else _advantage_text(row)
    at = (box.x + box.width - 0.12, lines_y[0]) if is_low else (x, lines_y[2])
    axis.text(*at, label, fontsize=13, fontweight="bold", va="center", ha="right" if is_low else "left", color=colour)


def _draw_observed(axis: Axes, row: RowRecord, *, box: Box, run_dir: Path) -> float:
    """Draws the first picture a tool returned; returns the width it takes."""
    images = [image for segment in row.segments if segment.kind == "observation" for image in segment.images]
    path = RunDirectory(run_dir).image_path(images[0]) if images else None
    if path is None or not path.exists():
        return 0.0
    pixels_HW3 = _pixels(path)
    height_px, width_px = pixels_HW3.shape[:2]
    scale = min((box.height - 0.2) / height_px, 1.3 / width_px)
    width, height = width_px * scale, height_px * scale
    _place(axis, pixels_HW3, Box(box.x + 0.25, box.left[1] - height / 2, width, height))
    return width + 0.15


def _call_words(row: RowRecord) -> str:
    """The call in a few words: ``zoom [0, 0, 333, 500]``, ``python: import numpy …``; else that it is malformed."""
    call = first_call(row)
    if not isinstance(call, Mapping) or not isinstance(call.get("arguments"), Mapping):
        return "malformed call"
    arguments = call["arguments"]
    if "bbox_2d" in arguments:
        return f"zoom {json.dumps(arguments['bbox_2d'], separators=(',', ':'))}"
    return f"{call.get('name')}: {' '.join(str(value) for value in arguments.values())}".replace("\n", " ")


# ----------------------------------------------------------------------------------------------------------- parts
def shade(advantage: float | None) -> tuple[float, float, float]:
    """Background for an advantage: white mixed with blue (positive) or orange (negative) by its size."""
    strength = 0.12 + 0.33 * min(abs(advantage or 0.0) / 2.5, 1.0) ** 0.5
    if advantage is None or round(advantage, 2) == 0:
        return colors.to_rgb(_PLAIN)
    tone = np.array(colors.to_rgb(GAIN if advantage > 0 else LOSS))
    return tuple(1 - strength * (1 - tone))


def shorten(text: str, *, width: float, size: float) -> str:
    """Cuts text that would be wider than ``width`` inches at a font size in points."""
    text, limit = text.replace(IMAGE_MARK, ""), max(4, int(width / (_CHARACTER * size)))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _advantage_text(row: RowRecord) -> str:
    return f"A {signed(row.advantage)}" if row.advantage is not None else "not trained"


def _heading(axis: Axes, x: float, text: str) -> None:
    axis.text(x, _TOP + 0.35, text, fontsize=13, color=MUTED, va="baseline")


def _panel(axis: Axes, box: Box, *, face: object, edge: str | None, is_dashed: bool = False) -> None:
    style = {"facecolor": face, "edgecolor": edge or "none", "linewidth": 1.6, "linestyle": "--" if is_dashed else "-"}
    axis.add_patch(
        FancyBboxPatch((box.x, box.y), box.width, box.height, boxstyle="round,pad=0,rounding_size=0.08", **style)
    )


def _mark(axis: Axes, row: RowRecord, *, x: float, y: float) -> None:
    sign, colour = ("✓", RIGHT) if row.is_correct else ("✗", WRONG)
    axis.text(x, y, sign, fontsize=15, fontweight="bold", color=colour, ha="center", va="center")


def _connect(
    axis: Axes, start: Sequence[float], stop: Sequence[float], *, colour: str, is_dashed: bool = False
) -> None:
    """A line that leaves and arrives horizontally."""
    t = np.linspace(0, 1, 40)
    ease = t * t * (3 - 2 * t)
    x, y = start[0] + (stop[0] - start[0]) * t, start[1] + (stop[1] - start[1]) * ease
    axis.plot(x, y, color=colour, linewidth=2, linestyle=(0, (3, 2)) if is_dashed else "-", zorder=1)
