"""The search tool as ``tools.search`` says."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nemo_axpo.config.schema import SearchConfig, ToolsConfig
from nemo_axpo.errors import rule_message
from nemo_axpo.remote.answer_cache import AnswerCache
from nemo_axpo.remote.json_client import JsonClient, RetrySettings
from nemo_axpo.remote.pace import Pace
from nemo_axpo.tools.limits import call_limit
from nemo_axpo.tools.search.base import SearchBackend
from nemo_axpo.tools.search.corpus import CorpusSearch
from nemo_axpo.tools.search.tavily import KEY_VARIABLE, TavilySearch
from nemo_axpo.tools.search.tool import NAME, SearchTool


def build_search(section: SearchConfig) -> SearchTool:
    """ValueError for a missing key or a corpus that cannot be read."""
    return SearchTool(_BACKENDS[section.backend](section), max_result_chars=section.max_result_chars)


def search_problems(config: ToolsConfig) -> Iterator[str]:
    """What does not fit in the section, where this process runs the tool; this machine is not asked."""
    section = config.search
    if not _runs_here(config):
        return
    if section.backend == "corpus" and section.corpus is None:
        cure = 'set tools.search.corpus to a JSONL file with {"title", "url", "content"} a line'
        yield rule_message("tools.search.backend=corpus needs a corpus", got="null", cure=cure)
    limit = call_limit(config, NAME).timeout_s
    if section.backend == "tavily" and section.max_time_s >= limit:
        rule = "tools.search.max_time_s must be below tools.timeout_s, or a busy service looks like a slow tool to the model"
        yield rule_message(rule, got=f"{section.max_time_s:g} >= {limit:g}", cure="raise tools.timeout_s")


def search_key_problems(config: ToolsConfig) -> Iterator[str]:
    """The key, where this process needs it and its environment lacks it."""
    if _runs_here(config) and config.search.backend == "tavily" and not os.environ.get(KEY_VARIABLE):
        yield _no_key()


def _runs_here(config: ToolsConfig) -> bool:
    return NAME in config.names and NAME not in config.servers


def _no_key() -> str:
    cure = f"export {KEY_VARIABLE}=..., or set tools.search.backend=corpus and tools.search.corpus"
    return rule_message(f"{NAME} reads its key from {KEY_VARIABLE}", got="it is not set", cure=cure)


def _tavily(section: SearchConfig) -> SearchBackend:
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ValueError(_no_key())
    retry = RetrySettings(section.timeout_s, max_retries=section.max_retries, max_time_s=section.max_time_s)
    pace = Pace(section.per_minute / 60 if section.per_minute else None)
    client = JsonClient(section.url, key=key, retry=retry, pace=pace, max_concurrent=section.max_concurrent)
    return TavilySearch(
        client,
        cache=AnswerCache(section.cache_dir),
        excluded_domains=section.excluded_domains,
        search_depth=section.search_depth,
    )


def _corpus(section: SearchConfig) -> SearchBackend:
    return CorpusSearch(section.corpus, excluded_domains=section.excluded_domains)


_BACKENDS = {"tavily": _tavily, "corpus": _corpus}
