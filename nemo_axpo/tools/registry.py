"""The tools of one run by name, and the check of arguments against their JSON schemas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match

from nemo_axpo.tools.base import Tool


class ToolRegistry:
    """Tools in the order the prompt lists them. An empty registry is an agent without tools."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        """Raises ValueError for two tools of one name, or a schema that is not valid or names another tool."""
        self._tools: dict[str, Tool] = {}
        self._validators: dict[str, Draft202012Validator] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ValueError(f"two tools are named {tool.name!r}: a tool name must be unique, remove one")
            self._tools[tool.name] = tool
            self._validators[tool.name] = _validator(tool)

    @property
    def names(self) -> tuple[str, ...]:
        """Tool names in prompt order."""
        return tuple(self._tools)

    @property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        """OpenAI function-calling dicts in prompt order."""
        return tuple(tool.schema for tool in self._tools.values())

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def argument_error(self, name: str, arguments: dict[str, Any]) -> str:
        """What is wrong with the arguments of a known tool, in words the model can act on; empty when valid."""
        error = best_match(self._validators[name].iter_errors(arguments))
        return _explain(error) if error is not None else ""


def _validator(tool: Tool) -> Draft202012Validator:
    try:
        function = tool.schema["function"]
        Draft202012Validator.check_schema(function["parameters"])
    except (KeyError, SchemaError) as error:
        raise ValueError(
            f"the schema of tool {tool.name!r} is not a valid OpenAI function schema ({error!r:.200}): it needs "
            "function.name and function.parameters, the latter a JSON schema"
        ) from error
    if function.get("name") != tool.name:
        raise ValueError(f"tool {tool.name!r} has a schema named {function.get('name')!r}: give both the same name")
    return Draft202012Validator(function["parameters"])


def _explain(error: ValidationError) -> str:
    """The common mistakes in few words; they become tokens of the next turn."""
    where = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in error.absolute_path)
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"missing argument {missing}"
    if error.validator == "type":
        return f"{where or 'arguments'} must be {error.validator_value}"
    if error.validator in ("minItems", "maxItems"):
        return f"{where} has {len(error.instance)} items, {error.validator} is {error.validator_value}"
    return f"{where}: {error.message}"
