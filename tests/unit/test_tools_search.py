"""The search tool over real HTTP and over a corpus; what it finds, keeps, refuses, and survives."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from local_services import Reply, in_turn, running
from scripted_agent import ScriptedEngine, answer, by_turn, image_store, make_agent, make_question

from nemo_axpo.config.checks import check_config
from nemo_axpo.config.load import load_config
from nemo_axpo.errors import ConfigError
from nemo_axpo.rollouts.agent import RolloutJob
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.build import build_tool
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.tools.search.base import is_excluded
from nemo_axpo.types import RolloutStatus, ToolCall

KEY = "tvly-very-secret"
PAGES = [
    {"title": "Lemon\nfruit", "url": "https://a.org/lemon", "content": " The lemon is a yellow fruit. ", "score": 0.9},
    {"title": "Leak", "url": "https://huggingface.co/datasets/x", "content": "the question itself"},
    {"title": "Lime", "url": "https://b.org", "content": "x" * 30},
]
FOUND = Reply({"query": "q", "results": PAGES})


@pytest.fixture(name="build")
def build_fixture(monkeypatch, tmp_path):
    """The tool as a config describes it, beside a service."""
    monkeypatch.setenv("TAVILY_API_KEY", KEY)

    def build(service, *overrides):
        quick = ["tools.search.max_retries=1", "tools.search.timeout_s=5", "tools.search.per_minute=null",
                 "tools.search.max_result_chars=20", f"tools.search.cache_dir={tmp_path}/cache"]  # fmt: skip
        url = [f"tools.search.url={service.url}"] if service else []
        config = load_config(["tools.names=[tavily-search]", *quick, *url, *overrides])
        return build_tool("tavily-search", config=config.tools, images=None)

    return build


def call(tool, query="yellow fruit", **arguments):
    async def run():
        session = tool.open([])
        try:
            return await session.call({"query": query, **arguments})
        finally:
            await session.close()

    return asyncio.run(run())


def test_what_is_asked_and_what_the_model_reads(build):
    with running(in_turn(FOUND)) as service:
        result = call(build(service), "  yellow \n fruit ", max_results=3)
    assert (
        result.text
        == "[1] Lemon fruit\nhttps://a.org/lemon\nThe lemon is a yell…\n\n[2] Lime\nhttps://b.org\n" + "x" * 19 + "…"
    )
    assert result.error == ""
    (asked,) = service.asked
    assert asked.path == "/search" and asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "query": "yellow fruit", "max_results": 3, "search_depth": "basic", "exclude_domains": ["huggingface.co"]
    }  # fmt: skip


def test_a_rerun_asks_for_nothing(build, tmp_path):
    with running(in_turn(FOUND)) as service:
        first = call(build(service))
        assert call(build(service)) == first and len(service.asked) == 1
        call(build(service), max_results=2)
        assert len(service.asked) == 2
        tool = build(service)
    assert call(tool) == first  # the service is gone
    for path in tmp_path.rglob("*.json"):
        assert KEY not in path.read_text()


def test_nothing_found(build):
    with running(in_turn(Reply({"results": []}))) as service:
        assert call(build(service)).text == "No results."


@pytest.mark.parametrize(
    "bad",
    [Reply({}, 429), Reply({}, 500), Reply(b"<html>"), Reply({"answer": 1}), Reply([]), Reply({"results": [1]}),
     Reply({"results": None}), Reply({"detail": {"error": "no"}}, 401), Reply({}, 403), Reply({}, 404), Reply({}, 432)],
)  # fmt: skip
def test_a_service_that_fails_loses_the_rollout_and_nothing_is_kept(build, bad, tmp_path):
    with running(in_turn(bad)) as service, pytest.raises(ToolUnavailableError, match="search service"):
        call(build(service, "tools.search.max_retries=0"))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("bad", [Reply({}, 429, {"Retry-After": "0"}), Reply({}, 502), Reply(b"{")])
def test_what_passes_is_asked_again(build, bad):
    with running(in_turn(bad, FOUND)) as service:
        assert call(build(service)).text.startswith("[1] Lemon")


def test_a_service_that_does_not_answer_in_time(build):
    late = pytest.raises(ToolUnavailableError, match="did not answer within 0.1 s")
    with running(in_turn(Reply({}, delay_s=0.5))) as service, late:
        call(build(service, "tools.search.timeout_s=0.1", "tools.search.max_retries=0"))


def test_an_exhausted_key_says_what_to_do_and_shows_no_key(build, caplog):
    caplog.set_level(logging.DEBUG)
    telling = running(in_turn(Reply({"detail": {"error": f"{KEY} is used up"}}, 432)))
    with telling as service, pytest.raises(ToolUnavailableError, match=r"\*\*\* is used up; the key's plan") as caught:
        call(build(service))
    assert KEY not in str(caught.value) and KEY not in caplog.text


def test_a_query_that_is_refused_is_an_observation(build):
    with running(in_turn(Reply({"detail": {"error": "Query is too vague."}}, 400))) as service:
        result = call(build(service))
        assert (result.error, result.text) == (
            "bad_query",
            "the search service does not take this query: Query is too vague.",
        )
        assert call(build(service), " ").error == "bad_arguments"
        assert "has 401 characters: use at most 400" in call(build(service), "x" * 401).text
        assert len(service.asked) == 1


def test_arguments_are_checked_against_the_schema(build):
    with running(in_turn(FOUND)) as service:
        registry = ToolRegistry([build(service)])
        state = ToolExecutor(registry).open([])
        assert registry.argument_error("tavily-search", {"query": "x", "max_results": 0}).startswith(
            "max_results: 0 is less"
        )
        assert registry.argument_error("tavily-search", {"query": 3}) == "query must be string"
        assert registry.argument_error("tavily-search", {"query": "x", "max_results": 5.0}) == ""
        call = ToolCall(0, 1, "tavily-search", {"query": "x", "max_results": 5.0})
        assert asyncio.run(state.run(call)).text.startswith("[1] Lemon")
    assert service.asked[0].body["max_results"] == 5


@pytest.mark.parametrize(
    ("url", "excluded"),
    [
        ("https://huggingface.co/x", True),
        ("http://HF.HuggingFace.co:80/", True),
        ("huggingface.co/x", True),
        ("https://huggingface.co.evil.org", False),
        ("https://nothuggingface.co", False),
        ("https://a.org/?u=huggingface.co", False),
        ("http://[broken", True),
        ("", False),
    ],
)
def test_excluded_domains(url, excluded):
    assert is_excluded(url, domains=["HuggingFace.co"]) is excluded


# -------------------------------------------------------------------------------------------------------------- corpus
def write_corpus(path, pages):
    path.write_text("\n".join(json.dumps(page, ensure_ascii=False) for page in pages) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path):
    pages = [
        {"title": "Whale", "url": "https://a.org/whale", "content": "The blue whale is the largest animal."},
        {"title": "Lemon", "url": "https://a.org/lemon", "content": "A lemon is a yellow fruit. Lemon juice is sour."},
        {"title": "Sky", "content": "The sky is blue."},
        {"title": "Leak", "url": "https://huggingface.co/x", "content": "lemon lemon lemon blue whale"},
        {"title": "東京", "content": "東京は日本の首都"},
    ]
    return write_corpus(tmp_path / "pages.jsonl", pages)


def titles(result):
    return [line.split("] ")[1] for line in result.text.splitlines() if line.startswith("[")]


def test_a_corpus_is_ranked_and_reads_like_the_web(build, corpus):
    tool = build(
        None, "tools.search.backend=corpus", f"tools.search.corpus={corpus}", "tools.search.max_result_chars=99"
    )
    assert call(tool, "which fruit is a LEMON?").text.startswith(
        "[1] Lemon\nhttps://a.org/lemon\nA lemon is a yellow fruit. Lemon juice is sour."
    )
    assert titles(call(tool, "blue whale")) == ["Whale", "Sky"]
    assert titles(call(tool, "blue whale", max_results=1)) == ["Whale"]
    assert titles(call(tool, "首都")) == ["東京"]
    assert call(tool, "xylophone").text == call(tool, "???").text == "No results."


def test_equal_scores_keep_the_order_of_the_file(build, tmp_path):
    corpus = write_corpus(tmp_path / "same.jsonl", [{"title": str(n), "content": "lemon"} for n in range(30)])
    tool = build(None, "tools.search.backend=corpus", f"tools.search.corpus={corpus}")
    assert titles(call(tool, "lemon", max_results=4)) == ["0", "1", "2", "3"]


def test_many_search_a_corpus_at_once(build, corpus):
    tool = build(None, "tools.search.backend=corpus", f"tools.search.corpus={corpus}")

    async def run():
        return await asyncio.gather(*[tool.call({"query": "lemon"}) for _ in range(20)])

    assert {result.text for result in asyncio.run(run())} == {call(tool, "lemon").text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "must have pages; got none"),
        ('{"content": "a", "url": "https://huggingface.co/x"}', "must have pages"),
        ('{"content": "a"}\n{"content": 3}\n', "are strings; got line 2"),
        ('{"title": "a"}\n', r"KeyError\('content'\) in line 1"),
        ("[1]\n", "in line 1"),
        ("{\n", "in line 1"),
    ],
)
def test_a_corpus_that_is_none(build, tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        build(None, "tools.search.backend=corpus", f"tools.search.corpus={tmp_path}/bad.jsonl")


def test_a_corpus_that_is_not_there(build, tmp_path):
    with pytest.raises(ValueError, match="that can be read; got .*nowhere.jsonl"):
        build(None, "tools.search.backend=corpus", f"tools.search.corpus={tmp_path}/nowhere.jsonl")


# -------------------------------------------------------------------------------------------------------------- config
def test_a_missing_key_is_found_before_training(monkeypatch, build):
    with running(in_turn(FOUND)) as service:
        monkeypatch.delenv("TAVILY_API_KEY")
        message = "tavily-search reads its key from TAVILY_API_KEY; got it is not set: export TAVILY_API_KEY"
        with pytest.raises(ConfigError, match=message):
            check_config(load_config(["tools.names=[tavily-search]"]))
        with pytest.raises(ValueError, match=message):
            build(service)
    check_config(load_config(["tools.names=[image_zoom_in]"]))
    check_config(load_config(["tools.names=[tavily-search]", "+tools.servers.tavily-search=[http://h:1]"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tools.search.backend=corpus"], "tools.search.backend=corpus needs a corpus; got null"),
        (["tools.search.max_time_s=60"], "must be below tools.timeout_s.*; got 60 >= 60: raise tools.timeout_s"),
    ],
)
def test_what_does_not_fit(overrides, message, monkeypatch):
    monkeypatch.setenv("TAVILY_API_KEY", KEY)
    with pytest.raises(ConfigError, match=message):
        check_config(load_config(["tools.names=[tavily-search]", *overrides]))


# -------------------------------------------------------------------------------------------------------------- rollout
SEARCH = (
    'who?\n</think>\n\n<tool_call>\n{"name": "tavily-search", "arguments": {"query": "lemon"}}\n</tool_call><|im_end|>'
)


@pytest.mark.parametrize(("reply", "status"), [(FOUND, RolloutStatus.ANSWERED), (Reply({}, 500), RolloutStatus.LOST)])
def test_a_rollout_that_searches(build, reply, status):
    store = image_store()
    with running(in_turn(reply)) as service:
        tool = build(service, "tools.search.max_retries=0")
        agent = make_agent(ScriptedEngine(by_turn(SEARCH, answer("red"))), store, tools=[tool])
        question = make_question(store)
        prompt = agent.renderer.prompt(question)
        rollout = asyncio.run(agent.run(RolloutJob("q7/0", question, prompt, prompt, 1, 0)))
    assert rollout.status is status
    if status is RolloutStatus.ANSWERED:
        assert "https://a.org/lemon" in agent.renderer.decode(rollout.turns[1].prompt_delta.token_ids)
