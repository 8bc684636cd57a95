"""The state from which reinforcement learning starts, and whether the paper's gap can show from there.

Outside of the window the picture changes: where the direct way is much better than the tool, every algorithm drops the
tool; where it is much worse, GRPO learns the tool by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmStartWindow:
    """Rates in [0, 1]: a tool that is tried, and at first fails about as often as the direct way."""

    tool_use: tuple[float, float] = (0.25, 0.30)
    direct_accuracy: tuple[float, float] = (0.25, 0.32)
    min_tool_accuracy: float = 0.20
    """The upper bound is the run's own direct accuracy."""
    all_wrong: tuple[float, float] = (0.33, 0.62)
    """Of groups of N = 8; the bounds above imply 0.41 to 0.63 for independent rollouts."""

    def bounds(self, rates: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Lower and upper bound of every rate, given the measured direct accuracy."""
        bounds = {"tool_use": self.tool_use, "direct_accuracy": self.direct_accuracy, "all_wrong": self.all_wrong}
        if rates.get("direct_accuracy") is not None:
            bounds["tool_accuracy"] = (self.min_tool_accuracy, rates["direct_accuracy"])
        return bounds

    def checks(self, rates: Mapping[str, float]) -> dict[str, bool]:
        """Whether each measured rate lies in the window; rates that were not measured are absent."""
        bounds = self.bounds(rates)
        measured = {name: rates[name] for name in bounds if rates.get(name) is not None}
        return {name: bounds[name][0] <= rate <= bounds[name][1] for name, rate in measured.items()}

    def misses(self, rates: Mapping[str, float]) -> list[str]:
        """One line per rate outside of the window: what it is, where it should lie, and the setting that moves it."""
        bounds = self.bounds(rates)
        return [
            f"{name} is {rates[name]:.3f}, the window is {bounds[name][0]:.3f} to {bounds[name][1]:.3f}: {_CURES[name]}"
            for name, is_inside in self.checks(rates).items()
            if not is_inside
        ]


_CURES = {
    "tool_use": "world.tool_rate sets it; more sft.num_steps bring it nearer to that",
    "direct_accuracy": "lower world.daylight raises it, higher lowers it; below 0.2, raise sft.num_steps",
    "tool_accuracy": "world.aim_rate raises it; below 0.2 the crops are not read yet, raise sft.num_steps",
    "all_wrong": "it follows tool use and tool accuracy",
}
