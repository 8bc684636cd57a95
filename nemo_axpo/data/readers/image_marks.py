"""Numbered image marks (``<image1>``, ``<image2>`` …) as the question schema writes them."""

from __future__ import annotations

import re

from nemo_axpo.data.questions import IMAGE_MARK

_MARK = re.compile(r"<image(\d+)>")


def numbered_marks(text: str) -> tuple[int, ...]:
    """Numbers of the marked images, each once, in the order in which they come."""
    return tuple(dict.fromkeys(int(match[1]) for match in _MARK.finditer(text)))


def unnumbered(text: str) -> str:
    """``<image>`` where an image comes for the first time, its name ``image 1`` where it comes again.

    Example: ``<image2> and <image1>; in <image2>`` becomes ``<image> and <image>; in image 2``.
    """
    seen: set[str] = set()

    def written(match: re.Match[str]) -> str:
        is_new = match[1] not in seen
        seen.add(match[1])
        return IMAGE_MARK if is_new else f"image {match[1]}"

    return _MARK.sub(written, text)


def one_image(text: str) -> str:
    """For a question whose pictures are one file: the first mark is that file, the others are named."""
    first = _MARK.search(text)
    if first is None:
        return text
    after = _MARK.sub(lambda match: f"image {match[1]}", text[first.end() :])
    return text[: first.start()] + IMAGE_MARK + after
