"""What the numbers say, in plain words; nothing is claimed that they do not show."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_axpo.report.outcome import TITLES, median_of, outcome, percent, start_of, tool_fate
from nemo_axpo.report.runs import Arm, RunRecord, arms_of

CLEAR_GAIN = 0.05
"""Rates closer than this (5 points) are called equal."""
_PROGRESS = {"tool_use": "tool use", "pass@1": "Pass@1", "pass@4": "Pass@4"}


def verdict(runs: Sequence[RunRecord]) -> str:
    """What the numbers say, in plain words; nothing is claimed that they do not show."""
    arms = arms_of(runs)
    axpo = next((arm for arm in arms if arm.algorithm == "axpo"), None)
    rivals = [arm for arm in arms if arm is not axpo]
    sentences = [_comparison(axpo, rivals)] if axpo and rivals else [_progress(arm) for arm in arms]
    return " ".join([*sentences, *_unfinished(runs)])


def headline(runs: Sequence[RunRecord]) -> str:
    """A title of a few words: the finding where there is one, the subject otherwise."""
    arms = arms_of(runs)
    fates = {arm.label: tool_fate(median_of(arm, "tool_use")) for arm in arms}
    axpo = [label for label, arm in zip(fates, arms, strict=True) if arm.algorithm == "axpo"]
    grpo = [label for label, arm in zip(fates, arms, strict=True) if arm.algorithm == "grpo"]
    if len(axpo) != 1 or not grpo or not all(run.is_finished for run in runs):
        return f"{' · '.join(fates)} over training"
    others = {fates[label] for label in grpo}
    words = {"learned": "learns", "lost": "loses", "kept": "keeps"}
    if len(others) > 1 or "unknown" in {*others, fates[axpo[0]]}:
        return "AXPO and GRPO over training"
    ours, theirs = fates[axpo[0]], others.pop()
    if ours == theirs:
        return f"AXPO and GRPO both {words[ours].removesuffix('s') if ours != 'lost' else 'lose'} the tool"
    return f"GRPO {words[theirs]} the tool, AXPO {words[ours]} it"


def _comparison(axpo: Arm, rivals: Sequence[Arm]) -> str:
    theirs = ", ".join(f"{rival.label} {_fate_words(rival, tool='it')}" for rival in rivals)
    gains = [text for name in ("pass@1", "pass@4") if (text := _gain(name, axpo=axpo, rivals=rivals))]
    return " ".join([f"{axpo.label} {_fate_words(axpo, tool='the tool')}; {theirs}.", *gains])


def _fate_words(arm: Arm, *, tool: str) -> str:
    """``learned the tool (tool use 27% → 100%)``, with the number of seeds where there are several."""
    now, before = median_of(arm, "tool_use"), start_of(arm, "tool_use")
    fate = tool_fate(now)
    if fate == "unknown":
        return "has no measured tool use yet"
    words = {"learned": f"learned {tool}", "lost": f"lost {tool}", "kept": f"neither learned nor lost {tool}"}[fate]
    count = sum(tool_fate(outcome(run).values.get("tool_use")) == fate for run in arm.runs)
    seeds = f"on {count} of {len(arm.runs)} seeds, median " if len(arm.runs) > 1 else ""
    change = f"{percent(before)} → {percent(now)}" if before is not None else percent(now)
    return f"{words} ({seeds}tool use {change})"


def _gain(name: str, *, axpo: Arm, rivals: Sequence[Arm]) -> str:
    """Example: ``AXPO's Pass@1 is 90%, 52 points above GRPO N=10 (38%).``"""
    ours = median_of(axpo, name)
    theirs = {rival.label: value for rival in rivals if (value := median_of(rival, name)) is not None}
    if ours is None or not theirs:
        return ""
    best = max(theirs, key=theirs.__getitem__)
    gain = ours - theirs[best]
    close = f"within {CLEAR_GAIN * 100:.0f} points of"
    side = close if abs(gain) < CLEAR_GAIN else f"{abs(gain) * 100:.0f} points {'above' if gain > 0 else 'below'}"
    return f"{axpo.label}'s {TITLES[name]} is {percent(ours)}, {side} {best} ({percent(theirs[best])})."


def _progress(arm: Arm) -> str:
    """One arm without a rival: where each rate went."""
    changes = []
    for name, words in _PROGRESS.items():
        now, before = median_of(arm, name), start_of(arm, name)
        if now is not None:
            start = f"{percent(before)} → " if before is not None else ""
            changes.append(f"{words} {start}{percent(now)}")
    return f"{arm.label}: {', '.join(changes) or 'nothing measured yet'}."


def _unfinished(runs: Sequence[RunRecord]) -> list[str]:
    open_runs = [run for run in runs if not run.is_finished]
    if not open_runs:
        return []
    planned = [f" of {run.num_steps}" if run.num_steps else "" for run in open_runs]
    steps = ", ".join(f"{run.name} at step {run.last_step}{n}" for run, n in zip(open_runs, planned, strict=True))
    return [f"Not finished: {steps}; these numbers may still change."]
