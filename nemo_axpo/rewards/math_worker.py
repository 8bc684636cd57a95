r"""Whether two mathematical answers are the same, by math-verify; runs in worker processes, as it may never return.

math-verify's own deadline is an alarm: it works in the main thread alone, which it blocks meanwhile, counts the seconds of
a busy machine, and is not heard inside a long call of GMP (sympy uses gmpy2 where it is installed). Here the deadline is
the worker's.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

_LATEX = (LatexExtractionConfig(boxed_match_priority=-1),)
_PLAIN = (ExprExtractionConfig(),)
_ARITHMETIC = re.compile(r"[\d.,\s+\-*/^()×÷%]+")
"""What a calculator reads: ``2**10``, ``50%``; LaTeX has no word for these."""

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_LOWERED = str.maketrans(_SUPERSCRIPTS, "0123456789-")
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_FRACTION = re.compile(r"(\d+)\N{FRACTION SLASH}(\d+)")
_SYMBOLS = str.maketrans({"°": "^\\circ ", "∞": "\\infty ", "\N{FRACTION SLASH}": "/"})
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_GAP = re.compile(r"(?<=\d)\\[,;:! ](?=\d{3})")
"""Between thousands."""

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own deadline is off


def warm_up() -> None:
    """Loads grammars, regular expressions and the lazy parts of sympy, once for all forks."""
    for reference, answer in (("\\frac{1}{2}", "0.5"), ("x^2+2x+1", "(x+1)^2"), ("(1,2]", "1<x"), ("2**3", "50%")):
        is_equal([reference], answer)


def is_equal(references: Sequence[str], answer: str) -> bool:
    """Whether ``answer`` equals one of the references; False where either cannot be read as mathematics."""
    try:
        given = expressions(answer)
        return bool(given) and any(
            verify(expressions(reference), given, timeout_seconds=None) for reference in references
        )
    except RecursionError:  # nested deeper than Python can read
        return False


def latex_of(text: str) -> str:
    r"""LaTeX for what is written in Unicode alone: ``30°``, ``√2``, ``x²``, ``1½``, ``∞``, and ``1\,000`` without its gap."""
    text = _RAISED.sub(lambda match: f"^{{{match[0].translate(_LOWERED)}}}", text)
    text = "".join(_FRACTION.sub(r"\\frac{\1}{\2}", unicodedata.normalize("NFKC", character)) for character in text)
    return _GAP.sub("", _ROOT.sub(r"\\sqrt{\1\2}", text.translate(_SYMBOLS)))


def expressions(text: str) -> list:
    """What math-verify reads in ``text``; a list of sympy expressions, and of the text where there is none."""
    plain = latex_of(text).strip().strip("$").replace("\\%", "%").strip()
    found = parse(f"${plain}$", _LATEX, parsing_timeout=None)
    if _ARITHMETIC.fullmatch(plain) and all(isinstance(value, str) for value in found):
        return parse(plain, _PLAIN, parsing_timeout=None) or found
    return found
