"""The state from which training starts, and whether the paper's gap can show from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmStartWindow:
    """Where the paper's gap shows: a tool that is tried, and at first fails about as often as the direct way."""

    tool_use: tuple[float, float] = (0.25, 0.30)
    direct_accuracy: tuple[float, float] = (0.25, 0.32)
    min_tool_accuracy: float = 0.20
    """The upper bound is the run's own direct accuracy."""

    def checks(self, rates: Mapping[str, float]) -> dict[str, bool]:
        """Whether each rate lies in the window; rates that were not measured are absent."""
        checks = {}
        for name, (low, high) in (("tool_use", self.tool_use), ("direct_accuracy", self.direct_accuracy)):
            if name in rates:
                checks[name] = low <= rates[name] <= high
        if "tool_accuracy" in rates and "direct_accuracy" in rates:
            checks["tool_accuracy"] = self.min_tool_accuracy <= rates["tool_accuracy"] <= rates["direct_accuracy"]
        return checks
