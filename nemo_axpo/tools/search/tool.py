"""``tavily-search``: the web, or a corpus, through one schema and one form of observation (ALGORITHM §8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_axpo.errors import rule_message
from nemo_axpo.tools.agent_prompt import tool_schema
from nemo_axpo.tools.search.base import BadQueryError, SearchBackend, SearchResult
from nemo_axpo.types import ImageId, ToolResult

NAME = "tavily-search"
MAX_QUERY_CHARS = 400
"""Bound of Tavily's interface; kept by every backend, so that what the model learns holds for all."""


class SearchTool:
    """The tool, shared by all rollouts; it has no state of its own."""

    name = NAME

    def __init__(self, backend: SearchBackend, *, max_result_chars: int = 1_000) -> None:
        """``max_result_chars``: a longer passage is cut; passages become tokens of the row."""
        if max_result_chars < 1:
            rule = "max_result_chars of the search tool must be at least 1"
            raise ValueError(rule_message(rule, got=max_result_chars, cure="leave it unset"))
        self._backend, self._max_result_chars = backend, max_result_chars
        self.schema = tool_schema(NAME)

    def open(self, images: Sequence[ImageId]) -> SearchTool:
        """The tool itself: nothing is kept between calls."""
        return self

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        """What was found; a query that the backend refuses is an observation, ToolUnavailableError passes."""
        query = " ".join(arguments["query"].split())
        if not query:
            return ToolResult("the query is empty", error="bad_arguments")
        if len(query) > MAX_QUERY_CHARS:
            text = f"the query has {len(query)} characters: use at most {MAX_QUERY_CHARS}"
            return ToolResult(text, error="bad_arguments")
        try:
            found = await self._backend.search(query, max_results=int(arguments.get("max_results", 5)))
        except BadQueryError as error:
            return ToolResult(str(error), error="bad_query")
        return ToolResult(observation(found, max_result_chars=self._max_result_chars))

    async def close(self) -> None:
        """Nothing to free."""


def observation(results: Sequence[SearchResult], *, max_result_chars: int) -> str:
    """Numbered pages: title, address, passage."""
    if not results:
        return "No results."
    return "\n\n".join(
        f"[{number}] {_line(result.title)}\n{_line(result.url)}\n{_cut(result.content.strip(), max_result_chars)}"
        for number, result in enumerate(results, 1)
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"
