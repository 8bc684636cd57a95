"""Runs cells in one namespace, as a notebook does, and says what they showed. Lives inside the sandbox.

What a cell shows: what it printed, the value of its last expression, figures (``plt.show()`` or left open at its end), and
the error that ended it. Everything is cut at a bound here, so that a cell cannot make a reply of any size; whoever reads
the reply bounds it again, as a cell can also write into the channel itself.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

MAX_FIGURES = 8
"""Of one cell; further ones are dropped."""
_CELL = "<cell {number}>"


class BoundedText(io.TextIOBase):
    """Keeps the first ``max_chars`` characters and counts the rest."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars, self._parts, self.num_kept, self.num_dropped = max_chars, [], 0, 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Takes it all and keeps what fits."""
        kept = text[: self._max_chars - self.num_kept]
        if kept:
            self._parts.append(kept)
        self.num_kept += len(kept)
        self.num_dropped += len(text) - len(kept)
        return len(text)

    @property
    def text(self) -> str:
        """What was kept."""
        return "".join(self._parts)


@dataclass
class Shown:
    """What one cell showed."""

    output: str = ""
    num_dropped: int = 0
    """Characters of output beyond the bound."""
    value: str = ""
    error: str = ""
    figures: list[bytes] = field(default_factory=list)
    """PNG files, in the order they were shown."""


class Interpreter:
    """One namespace that outlives its cells."""

    def __init__(self, *, max_chars: int) -> None:
        """``max_chars``: of output, of the value and of the error, each."""
        self._max_chars = max_chars
        self._number = self._num_images = 0
        self._awaited: list[str] = []
        self._figures: list[bytes] = []
        self._globals: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self._globals |= {"_pil_images": [], "_images": []}
        plt.show = self._show_figures
        Image.MAX_IMAGE_PIXELS = None  # the rollout's images are bounded where they come in, and memory is bounded here

    def run(self, code: str, *, images: Sequence[str] = ()) -> Shown:
        """Executes a cell, after it appended ``images`` (paths) to ``_images`` and, decoded, to ``_pil_images``.

        Nothing that a handler can catch ends the interpreter. An image that does not fit into memory is tried again by the next
        cell; this one runs without it and says so.
        """
        self._number += 1
        self._figures = []
        self._awaited += images
        text = BoundedText(self._max_chars)
        value = error = ""
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                self._load_images()
                value = self._shown_value(self._execute(code))
                self._show_figures()
            except BaseException as raised:  # noqa: BLE001 - whatever a cell raises is its result
                error = self._explain(raised)
                plt.close("all")
        return Shown(text.text, text.num_dropped, value[: self._max_chars], error[-self._max_chars :], self._figures)

    def _load_images(self) -> None:
        while self._awaited:
            try:
                with Image.open(self._awaited[0]) as image:
                    decoded = image.copy()
            except (MemoryError, OSError) as error:  # OSError: too many open files
                print(f"Image {self._num_images} is not in _pil_images yet: {type(error).__name__}")
                return
            self._num_images += 1
            self._append("_pil_images", decoded)
            self._append("_images", self._awaited.pop(0))

    def _append(self, name: str, item: object) -> None:
        """Where a cell left no list, there is a new one."""
        images = self._globals.get(name)
        if not isinstance(images, list):
            self._globals[name] = images = []
        images.append(item)

    def _execute(self, code: str) -> Any:
        name = _CELL.format(number=self._number)
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, filename=name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), self._globals)  # noqa: S102 - this is what the sandbox is for
        if last is None:
            return None
        return eval(compile(ast.Expression(last.value), name, "eval"), self._globals)

    def _shown_value(self, value: Any) -> str:
        if value is None:
            return ""
        self._globals["_"] = value
        if isinstance(value, Image.Image):
            self._keep_figure(value)
            return ""
        return repr(value)

    def _show_figures(self, *_: Any, **__: Any) -> None:
        """What ``plt.show`` does here: every open figure is kept as a PNG and closed."""
        for number in plt.get_fignums():
            buffer = io.BytesIO()
            plt.figure(number).savefig(buffer, format="png", bbox_inches="tight")
            if len(self._figures) < MAX_FIGURES:
                self._figures.append(buffer.getvalue())
        plt.close("all")

    def _keep_figure(self, image: Image.Image) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        if len(self._figures) < MAX_FIGURES:
            self._figures.append(buffer.getvalue())

    def _explain(self, error: BaseException) -> str:
        """The traceback from the cell's own frames on: ours say nothing to the reader."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename.startswith("<cell ")]
        lines = traceback.format_list(own) if own else []
        return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()


def reseed() -> None:
    """The same random numbers in every fresh interpreter: a rollout sampled again sees the same world."""
    import random

    random.seed(0)
    np.random.seed(0)
    sys.setrecursionlimit(3000)
