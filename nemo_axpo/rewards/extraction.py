r"""The final answer of a model turn: ``<answer>`` newline ``\boxed{"…"}`` newline ``</answer>`` after the thinking."""

from __future__ import annotations

_QUOTES = (('"', '"'), ("“", "”"))


def extract_answer(text: str) -> str | None:
    r"""Content of the last ``\boxed{…}`` in the last closed answer block after the last ``</think>``.

    Whitespace does not matter, quotes may be missing, braces may nest (``\frac{1}{2}``) and be escaped (``\{``). None
    where there is no such block, the box is not closed, or it is empty.
    """
    spoken = text.rpartition("</think>")[2]
    before, closing, _ = spoken.rpartition("</answer>")
    _, opening, block = before.rpartition("<answer>")
    if not (closing and opening):
        return None
    _, box, content = block.rpartition("\\boxed")
    content = content.lstrip()
    if not box or not content.startswith("{"):
        return None
    inner = _braced(content)
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
        if len(text) >= 2 and text.startswith(opening) and text.endswith(closing):
            return text[1:-1].strip()
    return text
