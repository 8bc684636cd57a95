"""What the tools of a step were asked, how often they answered with an error, and how long they took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nemo_axpo.types import Rollout, Turn

MALFORMED = "malformed"
"""Calls that reached no tool: what a model writes for a name must not become the name of a metric."""
_KNOWS_TOOL = ("", "bad_arguments")


@dataclass(frozen=True)
class ToolUse:
    """The calls of one tool on one replica."""

    tool: str
    num_calls: int
    num_errors: int
    """Answered with an error: of the model's making (a malformed call, code that raises) or the tool's (a deadline)."""


def tool_uses(rollouts: Iterable[Rollout]) -> tuple[ToolUse, ...]:
    """By tool name, sorted."""
    errors: dict[str, list[bool]] = defaultdict(list)
    for turn in _answered(rollouts):
        errors[_name(turn)].append(bool(turn.tool_result.error))
    return tuple(ToolUse(name, len(errors[name]), sum(errors[name])) for name in sorted(errors))


def tool_metrics(uses: Iterable[ToolUse]) -> dict[str, float]:
    """``tool/<name>_calls`` of all replicas, and ``tool/<name>_errors``, their share that was answered with an error."""
    calls: dict[str, int] = defaultdict(int)
    errors: dict[str, int] = defaultdict(int)
    for use in uses:
        calls[use.tool] += use.num_calls
        errors[use.tool] += use.num_errors
    metrics = {}
    for name in sorted(calls):
        metrics[f"tool/{name}_calls"] = float(calls[name])
        metrics[f"tool/{name}_errors"] = errors[name] / calls[name]
    return metrics


def tool_times(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """``time/<name>_p50_s`` and ``_p99_s`` of the calls that were executed."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in _answered(rollouts):
        if not turn.tool_call.error:
            seconds[_name(turn)].append(turn.tool_result.latency_s)
    return {
        f"time/{name}_p{percent}_s": percentile(seconds[name], percent)
        for name in sorted(seconds)
        for percent in (50, 99)
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least ``percent`` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _answered(rollouts: Iterable[Rollout]) -> Iterator[Turn]:
    for rollout in rollouts:
        yield from (turn for turn in rollout.turns if turn.tool_call is not None and turn.tool_result is not None)


def _name(turn: Turn) -> str:
    return turn.tool_call.name if turn.tool_call.error_kind in _KNOWS_TOOL else MALFORMED
