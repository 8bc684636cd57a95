"""Calls, errors and times of tools, counted by hand."""

from __future__ import annotations

import pytest

from nemo_axpo.rollouts.tool_metrics import ToolUse, percentile, tool_metrics, tool_times, tool_uses
from nemo_axpo.types import Completion, RenderedTokens, Rollout, RolloutStatus, ToolCall, ToolResult, Turn


def turn(name, *, error="", call_error="", latency_s=0.0, is_answered=True):
    call = ToolCall(0, 1, name, error=call_error, error_kind=call_error)
    result = ToolResult("text", error=error or call_error, latency_s=latency_s) if is_answered else None
    return Turn(RenderedTokens((1,)), Completion((2,), (-0.1,), "stop", 0), call, result)


def rollout(*turns):
    return Rollout("q/0", "q", turns, RolloutStatus.ANSWERED, None)


ROWS = [
    rollout(turn("python", latency_s=0.1), turn("zoom", latency_s=0.5), Turn(RenderedTokens((1,)), Completion((2,), (-0.1,), "stop", 0))),
    rollout(turn("python", error="exception", latency_s=0.3), turn("python", latency_s=0.2)),
    rollout(turn("", call_error="bad_json"), turn("python", is_answered=False)),
    rollout(turn("a tool of its own", call_error="unknown_tool"), turn("zoom", call_error="bad_arguments")),
]  # fmt: skip


def test_calls_and_errors():
    uses = tool_uses(ROWS)
    assert uses == (ToolUse("malformed", 2, 2), ToolUse("python", 3, 1), ToolUse("zoom", 2, 1))
    assert tool_metrics([*uses, ToolUse("python", 1, 1)]) == {
        "tool/python_calls": 4.0,
        "tool/python_errors": 0.5,
        "tool/malformed_calls": 2.0,
        "tool/malformed_errors": 1.0,
        "tool/zoom_calls": 2.0,
        "tool/zoom_errors": 0.5,
    }


def test_times_of_executed_calls():
    assert tool_times(ROWS) == {
        "time/python_p50_s": 0.2,
        "time/python_p99_s": 0.3,
        "time/zoom_p50_s": 0.5,
        "time/zoom_p99_s": 0.5,
    }
    assert tool_uses([]) == () and tool_metrics([]) == {} and tool_times([]) == {}


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (99, 10), (90, 9), (1, 1), (100, 10)])
def test_nearest_rank(percent, value):
    assert percentile(range(10, 0, -1), percent) == value
