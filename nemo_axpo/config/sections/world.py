"""The embedded world."""

from __future__ import annotations

from nemo_axpo.config.sections.base import NonNegative, Probability, Section


class WorldConfig(Section):
    """The embedded world: how much each view tells, and what its warm start teaches."""

    dots: Probability = 0.5
    """Contrast of the dots, visible only when zoomed in, as a share of the colour's distance from gray."""
    tint: Probability = 0.25
    """Contrast of the lit swatch's colour in the light on the whole picture; raises the direct accuracy."""
    daylight: NonNegative = 40.0
    """Standard deviation of the daylight's colour, in 0-255 levels per channel; lowers the direct accuracy."""
    aim_rate: Probability = 0.05
    """Share of the warm start's tool calls that aim at the right tile; raises the tool accuracy."""
    tool_rate: Probability = 0.275
    """Share of the warm start's answers that use the tool."""
