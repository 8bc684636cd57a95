"""Options of a multiple-choice question as lines that the verifier ``multiple_choice`` reads back."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence


def option_lines(options: Sequence[str] | Mapping[str, str]) -> str:
    """``(A) red`` and so on, a line each; a list gets its letters in order."""
    named = options if isinstance(options, Mapping) else dict(zip(string.ascii_uppercase, options, strict=False))
    return "\n".join(f"({letter}) {words}" for letter, words in named.items())
