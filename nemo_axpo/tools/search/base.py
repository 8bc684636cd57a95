"""What a search finds, and what every backend must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit


class BadQueryError(ValueError):
    """The backend does not take this query; the message is for the model."""


@dataclass(frozen=True)
class SearchResult:
    """One page that was found. Example: ``SearchResult("Lemon", "https://example.org/lemon", "A lemon is yellow …")``."""

    title: str
    url: str
    content: str
    """The passage that fits the query."""


class SearchBackend(Protocol):
    """Finds pages."""

    async def search(self, query: str, *, max_results: int) -> tuple[SearchResult, ...]:
        """At most ``max_results`` pages, best first, none of an excluded domain.

        BadQueryError for the model's fault, ToolUnavailableError for any other.
        """


def is_excluded(url: str, *, domains: Sequence[str]) -> bool:
    """Whether ``url`` belongs to one of the domains or to a domain under it."""
    try:
        host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").rstrip(".")
    except ValueError:  # a malformed address belongs nowhere that could be checked
        return bool(domains)
    return any(host == domain or host.endswith(f".{domain}") for domain in map(str.lower, domains))
