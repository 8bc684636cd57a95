r"""The final answer of a model turn: ``<answer>`` newline ``\boxed{"…"}`` newline ``</answer>`` after the thinking."""

from __future__ import annotations

import re

_QUOTES = (('"', '"'), ("“", "”"), ("``", "''"), ("'", "'"), ("‘", "’"), ("„", "“"), ("«", "»"), ('\\"', '\\"'))
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?=\{)")


def extract_answer(text: str, *, needs_block: bool = True) -> str | None:
    r"""Content of the last ``\boxed{…}`` in the last closed answer block after the last ``</think>``.

    Whitespace does not matter, quotes may be missing, braces may nest (``\frac{1}{2}``) and be escaped (``\{``), of boxes
    inside one another the innermost counts. None where there is no such block, the box is not closed, or it is empty.

    ``needs_block=False`` is for policies that never learned the block: where there is none, the last box after the
    thinking counts.
    """
    spoken = text.rpartition("</think>")[2]
    before, closing, _ = spoken.rpartition("</answer>")
    _, opening, block = before.rpartition("<answer>")
    if closing and opening:
        return _boxed(block)
    return None if needs_block else _boxed(spoken)


def _boxed(text: str) -> str | None:
    """What the last box holds; None where it is not closed, or empty."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    inner = _braced(text[boxes[-1].end() :])
    return None if inner is None else _unquote(inner.strip()) or None


def _braced(text: str) -> str | None:
    """What stands between the opening brace of ``text`` and the brace that closes it."""
    depth, index = 0, 0
    while index < len(text):
        if text[index] == "\\":
            index += 1  # the escaped character neither opens nor closes
        elif text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return text[1:index]
        index += 1
    return None


def _unquote(text: str) -> str:
    for opening, closing in _QUOTES:
        if len(text) >= len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : len(text) - len(closing)].strip()
    return text
