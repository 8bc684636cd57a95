"""The system turn of an agent and the schemas of the built-in tools, from one file: ``agent_prompt.yaml`` (ALGORITHM §8).

Warm start, reinforcement learning and evaluation read it alike, so that a policy is never asked otherwise than it was taught.
An agent without tools gets what is left when all that speaks of tools is taken away.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from nemo_axpo.errors import rule_message

AGENT = "agent"
"""Value of ``tools.instructions`` that stands for the packaged file."""


def agent_instructions(tool_names: Sequence[str]) -> str:
    """System text of an agent with these tools, in the order in which they are offered; tools of one's own add nothing."""
    prompt = _packaged()
    own = [prompt["by_tool"][name] for name in tool_names if name in prompt["by_tool"]]
    parts = [prompt["always"], *([prompt["with_tools"], *own] if tool_names else []), prompt["answer"]]
    return "\n\n".join(part.strip() for part in parts)


def read_instructions(choice: str | None, *, tool_names: Sequence[str]) -> str:
    """What ``tools.instructions`` stands for: the packaged text, that of a file, or none. ValueError for no such file."""
    if choice is None:
        return ""
    if choice == AGENT:
        return agent_instructions(tool_names)
    try:
        return Path(choice).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        rule = f"tools.instructions is {AGENT}, null, or a text file that can be read"
        raise ValueError(rule_message(rule, got=error, cure="correct the path")) from error


def tool_schema(name: str) -> dict[str, Any]:
    """OpenAI function-calling form of a built-in tool; the caller's own copy."""
    function = {"name": name, **copy.deepcopy(_packaged()["schemas"][name])}
    return {"type": "function", "function": function}


@cache
def _packaged() -> dict[str, Any]:
    return yaml.safe_load(files("nemo_axpo.tools").joinpath("agent_prompt.yaml").read_text(encoding="utf-8"))
