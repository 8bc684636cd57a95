"""A search service that speaks Tavily's protocol: ``POST /search`` with a bearer token.

Read from the public client tavily-python: the answer's ``results`` have ``title``, ``url`` and ``content``; an error says
why under ``detail.error``; 400 is the query's fault, 401 and 403 the key's, 432 and 433 those of an exhausted plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_axpo.remote.answer_cache import AnswerCache
from nemo_axpo.remote.json_client import JsonClient, RemoteRefusedError, RemoteUnavailableError
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.search.base import BadQueryError, SearchResult, is_excluded

KEY_VARIABLE = "TAVILY_API_KEY"
"""Environment variable of the key, the only place it is read from."""
_BAD_QUERY = (400, 422)
_CURES = {
    401: f"check {KEY_VARIABLE}",
    403: f"check what {KEY_VARIABLE} is allowed to do",
    432: "the key's plan is used up: raise it, or use another key",
    433: "the pay-as-you-go limit of the key is reached: raise it",
}


class TavilySearch:
    """Backend: every request is kept on disk with its answer, so that a second run asks for nothing."""

    def __init__(
        self,
        client: JsonClient,
        *,
        cache: AnswerCache | None = None,
        excluded_domains: Sequence[str] = (),
        search_depth: str = "basic",
    ) -> None:
        """``excluded_domains``: asked not to be searched, and left out of answers that have them all the same."""
        self._client, self.cache = client, cache or AnswerCache(None)
        self._excluded, self._depth = tuple(excluded_domains), search_depth

    async def search(self, query: str, *, max_results: int) -> tuple[SearchResult, ...]:
        """As :class:`nemo_axpo.tools.search.base.SearchBackend` says."""
        body = {"query": query, "max_results": max_results, "search_depth": self._depth}
        if self._excluded:
            body["exclude_domains"] = list(self._excluded)
        kept = {"url": self._client.url, "path": "/search", **body}
        found = [SearchResult(*row) for row in await self.cache.get(kept, ask=lambda: self._ask(body))]
        return tuple(page for page in found if not is_excluded(page.url, domains=self._excluded))[:max_results]

    async def _ask(self, body: dict[str, Any]) -> list[tuple[str, str, str]]:
        """Rows of title, address and passage."""
        try:
            answer = await self._client.post("/search", body)
        except RemoteUnavailableError as error:
            raise ToolUnavailableError(f"the search service: {error}") from error
        except RemoteRefusedError as error:
            if error.status in _BAD_QUERY:
                raise BadQueryError(f"the search service does not take this query: {_said(error)}") from error
            cure = _CURES.get(error.status, "check tools.search.url")
            raise ToolUnavailableError(f"the search service: {error}; {cure}") from error
        try:
            return [tuple(str(row.get(key) or "") for key in ("title", "url", "content")) for row in answer["results"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ToolUnavailableError(f"the search service answered no results: {answer!r:.200}") from error


def _said(error: RemoteRefusedError) -> str:
    """The service's words without its address, which is nothing for a model."""
    return str(error).partition(f"answered {error.status}: ")[2] or str(error)
