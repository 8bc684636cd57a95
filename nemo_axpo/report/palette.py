"""Colours and type of every picture; safe for colour-blind readers (Okabe & Ito), one colour per algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import matplotlib
from matplotlib import pyplot as plt

from nemo_axpo.report.runs import Arm

matplotlib.use("Agg")

INK, MUTED, GRID, SURFACE = "#1f2328", "#6a737d", "#e3e6ea", "#ffffff"
AXPO, GRPO_COLOURS = "#0072b2", ("#d55e00", "#e69f00")
OTHER_COLOURS = ("#009e73", "#cc79a7", "#56b4e9", "#8c6d1f", "#5b5b5b")
GAIN, LOSS, NEUTRAL = "#0072b2", "#d55e00", "#8a949e"
"""Positive, negative and zero advantage."""
RIGHT, WRONG = "#00855f", "#b3401a"
"""A correct and a wrong answer; every use carries a sign as well (✓, ✗)."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 15,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    # What a model wrote is no formula: a lone $ would stop the picture.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.fonttype": "none",
    "svg.hashsalt": "nemo_axpo",
}


def picture_style() -> AbstractContextManager[None]:
    """Matplotlib settings of the report's pictures, for a ``with`` block."""
    return plt.rc_context(_STYLE)


def arm_colours(arms: Sequence[Arm]) -> Mapping[str, str]:
    """Label to colour: AXPO blue, GRPO in warm colours by N, everything else in the order it comes."""
    warm, other = list(GRPO_COLOURS), list(OTHER_COLOURS)
    colours: dict[str, str] = {}
    for arm in arms:
        if arm.algorithm == "axpo" and AXPO not in colours.values():
            colours[arm.label] = AXPO
        elif arm.algorithm == "grpo" and warm:
            colours[arm.label] = warm.pop(0)
        else:
            colours[arm.label] = other.pop(0) if other else NEUTRAL
    return colours
