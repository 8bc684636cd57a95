"""Text as words: for measures of overlap and for search indexes."""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_LETTER = rf"[^\W\d_{_UNSPACED}]"
_WORD = re.compile(rf"[{_UNSPACED}]|\d+(?:[.,]\d+)*|{_LETTER}+(?:['’]{_LETTER}+)*")
"""One character of a script that is written without spaces, a number, or a word."""


def words_of(text: str) -> list[str]:
    """Case-folded words, numbers and characters of unspaced scripts, in order; no punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
