"""The first tool call of a completion, found on its token ids (ALGORITHM §3).

A completion starts inside the thinking, because the prompt ends with the opened ``<think>``. A call begins at the first
``<tool_call>`` **token id** after the ``</think>`` token id. Text that merely spells ``<tool_call>`` has other ids, and
a ``<tool_call>`` id inside the thinking is a thought: neither is a call. A malformed call is a call (a failure to
repair). Only the first call of a turn is read; what the model writes after it is not executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from nemo_axpo.data.vocabulary import SpecialTokens
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.types import ToolCall


def find_tool_call(token_ids: Sequence[int], *, special: SpecialTokens) -> tuple[int, int, bool] | None:
    """Span of the first call: index after ``<tool_call>``, index one past ``</tool_call>``, whether it was closed.

    None without a call. An unclosed call reaches to the end of the completion.
    """
    ids = list(token_ids)
    if special.tool_call not in ids or special.think_end not in ids:
        return None
    try:
        start = ids.index(special.tool_call, ids.index(special.think_end)) + 1
    except ValueError:
        return None
    try:
        return start, ids.index(special.tool_call_end, start) + 1, True
    except ValueError:
        return start, len(ids), False


def parse_tool_call(
    token_ids: Sequence[int], *, special: SpecialTokens, decode: Callable[[Sequence[int]], str], registry: ToolRegistry
) -> ToolCall | None:
    """Reads the first call of a completion; None where there is none. Never raises for what the model wrote.

    ``decode``: token ids to text (``ChatRenderer.decode``). Name and arguments of a call with an error are kept as
    far as they could be read.
    """
    span = find_tool_call(token_ids, special=special)
    if span is None:
        return None
    start, stop, closed = span
    if not closed:
        return ToolCall(start, stop, error="tool call without </tool_call>", error_kind="unclosed")
    name, arguments, kind, error = _read_call(decode(token_ids[start : stop - 1]), registry)
    return ToolCall(start, stop, name, arguments, error=error, error_kind=kind)


def _read_call(text: str, registry: ToolRegistry) -> tuple[str, dict[str, Any], str, str]:
    """Name, arguments, error kind and error text of the JSON between the tags."""
    try:
        call = json.loads(text)
        json.dumps(call, ensure_ascii=False, allow_nan=False).encode()  # NaN and half a surrogate pair go over no wire
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of opening brackets
        return "", {}, "bad_json", f"not valid JSON: {error}"
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return "", {}, "bad_json", 'a tool call must be {"name": …, "arguments": {…}}'
    name, arguments = call["name"], call.get("arguments", {})
    if name not in registry:
        known = arguments if isinstance(arguments, dict) else {}
        return name, known, "unknown_tool", f"unknown tool {name}: use {', '.join(registry.names) or 'none'}"
    if not isinstance(arguments, dict):
        return name, {}, "bad_arguments", "arguments must be an object"
    error = registry.argument_error(name, arguments)
    return name, arguments, "bad_arguments" if error else "", error
