"""A corpus on disk, ranked by BM25, for clusters without the web and for runs that must find the same for ever.

One JSON object a line: ``{"title": …, "url": …, "content": …}``; only ``content`` must be there. The file is checked line
by line when the tool is built, and read and indexed at the first search. Source of the ranking: bm25s, Lucene's variant of
BM25 with its defaults k1 = 1.5, b = 0.75.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_axpo.data.words import words_of
from nemo_axpo.errors import rule_message
from nemo_axpo.tools.search.base import SearchResult, is_excluded


class CorpusSearch:
    """Backend: the pages of one file that share words with the query."""

    def __init__(self, path: str | Path, *, excluded_domains: Sequence[str] = ()) -> None:
        """ValueError for a file that cannot be read, a line that is no page, or a corpus without one."""
        self._path, self._excluded = Path(path), tuple(excluded_domains)
        if not sum(1 for _ in self._read()):  # all of them: a broken line must be found now
            cure = 'write one {"title": ..., "url": ..., "content": ...} a line'
            raise ValueError(rule_message("a search corpus must have pages", got=f"none in {path}", cure=cure))
        self._lock = threading.Lock()
        self._pages: list[SearchResult] = []
        self._index: Any = None

    async def search(self, query: str, *, max_results: int) -> tuple[SearchResult, ...]:
        """As :class:`nemo_axpo.tools.search.base.SearchBackend` says; equal scores in the order of the file."""
        return await asyncio.to_thread(self._search, query, max_results)

    def _search(self, query: str, max_results: int) -> tuple[SearchResult, ...]:
        with self._lock:
            if self._index is None:
                self._build()
        words = [word for word in words_of(query) if word in self._index.vocab_dict]
        if not words:
            return ()
        scores = self._index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:max_results]
        return tuple(self._pages[index] for index in best if scores[index] > 0)

    def _build(self) -> None:
        import bm25s  # late: only a corpus needs it

        self._pages = list(self._read())
        index = bm25s.BM25(method="lucene")
        index.index([words_of(f"{page.title} {page.content}") or [""] for page in self._pages], show_progress=False)
        self._index = index

    def _read(self) -> Iterator[SearchResult]:
        return (page for page in read_pages(self._path) if not is_excluded(page.url, domains=self._excluded))


def read_pages(path: Path) -> Iterator[SearchResult]:
    """Every page of a corpus; ValueError names the line that is none."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _page(line, where=f"line {number} of {path}")
    except (OSError, UnicodeDecodeError) as error:
        rule = "tools.search.corpus must be a JSONL file that can be read"
        raise ValueError(rule_message(rule, got=error, cure="correct the path or the file")) from error


def _page(line: str, *, where: str) -> SearchResult:
    try:
        page = json.loads(line)
        texts = [page.get("title", ""), page.get("url", ""), page["content"]]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        rule = "a line of a search corpus is a JSON object with content, and title and url where known"
        raise ValueError(rule_message(rule, got=f"{error!r} in {where}", cure="correct the line")) from error
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(rule_message("title, url and content are strings", got=where, cure="correct the line"))
    return SearchResult(*texts)
