"""A client of services that fail in every way, and answers that are kept."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from email.utils import formatdate

import pytest
from local_services import Reply, in_turn, running

from nemo_axpo.remote.answer_cache import AnswerCache
from nemo_axpo.remote.json_client import JsonClient, RemoteRefusedError, RemoteUnavailableError, RetrySettings
from nemo_axpo.remote.pace import Pace

KEY = "sk-very-secret"
QUICK = RetrySettings(timeout_s=5.0, max_retries=2, first_delay_s=0.01, max_delay_s=0.05)


def post(url, *, retry=QUICK, **options):
    async def run():
        client = JsonClient(url, key=KEY, retry=retry, **options)
        try:
            return await client.post("/ask", {"q": "ü"})
        finally:
            await client.close()

    return asyncio.run(run())


def test_the_request_and_the_answer():
    with running(in_turn(Reply({"a": "é"}))) as service:
        assert post(service.url + "/") == {"a": "é"}
    (asked,) = service.asked
    assert (asked.path, asked.body, asked.headers["authorization"]) == ("/ask", {"q": "ü"}, f"Bearer {KEY}")


@pytest.mark.parametrize(
    "bad",
    [Reply({}, 408), Reply({}, 429), Reply({}, 500), Reply(b"", 503), Reply(b"<html>", 200), Reply(b"\xff", 200), Reply(b"[" * 10**5)],
    ids=["408", "429", "500", "503", "html", "bytes", "nested"],
)
def test_what_passes_is_asked_again(bad):
    with running(in_turn(bad, bad, Reply([1]))) as service:
        assert post(service.url) == [1]
        assert len(service.asked) == 3
    with running(in_turn(bad)) as service, pytest.raises(RemoteUnavailableError, match="in 3 attempts"):
        post(service.url)
    assert len(service.asked) == 3


def test_half_a_surrogate_pair_arrives():
    async def run(url):
        client = JsonClient(url)
        try:
            return await client.post("/ask", {"q": "\ud800"})
        finally:
            await client.close()

    with running(in_turn(Reply(1))) as service:
        assert asyncio.run(run(service.url)) == 1
    assert service.asked[0].body == {"q": "\ud800"} and service.asked[0].headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 432])
def test_a_refusal_is_final_and_says_what_the_service_said(status):
    refusing = running(in_turn(Reply({"detail": {"error": "no such thing"}}, status)))
    refused = pytest.raises(RemoteRefusedError, match=f"answered {status}: no such thing")
    with refusing as service, refused as caught:
        post(service.url)
    assert caught.value.status == status and len(service.asked) == 1


def test_a_service_that_is_slow_or_gone():
    quick = RetrySettings(timeout_s=0.1, max_retries=1, first_delay_s=0.01)
    late = pytest.raises(RemoteUnavailableError, match="did not answer within 0.1 s, in 2 attempts")
    with running(in_turn(Reply({}, delay_s=0.5))) as service, late:
        post(service.url, retry=quick)
    with pytest.raises(RemoteUnavailableError, match="cannot be reached"):
        post(service.url)


def test_all_attempts_together_have_a_limit():
    patient = RetrySettings(timeout_s=5, max_retries=1000, first_delay_s=0.01, max_delay_s=0.02, max_time_s=0.3)
    started = time.monotonic()
    with running(in_turn(Reply({}, 500))) as service, pytest.raises(RemoteUnavailableError, match="within 0.3 s"):
        post(service.url, retry=patient)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("value", ["0.3", formatdate(time.time() + 3600, usegmt=True)])
def test_a_service_says_when_to_come_back(value):
    retry = RetrySettings(max_retries=1, first_delay_s=0.0, max_delay_s=0.3)  # an hour is cut to what is allowed
    started = time.monotonic()
    with running(in_turn(Reply({}, 429, {"Retry-After": value}), Reply(1))) as service:
        assert post(service.url, retry=retry) == 1
    assert 0.3 <= time.monotonic() - started < 5


def test_the_key_is_in_no_message_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    for status in (401, 500):
        telling = running(in_turn(Reply({"error": f"bad key {KEY}"}, status)))
        with telling as service, pytest.raises(RuntimeError, match=r"bad key \*\*\*") as caught:
            post(service.url)
        assert KEY not in str(caught.value)
    assert KEY not in caplog.text


def test_requests_on_their_way_are_bounded_and_loops_may_change():
    async def run(client):
        return await asyncio.gather(*[client.post("/ask", {"n": n}) for n in range(8)])

    with running(in_turn(Reply(1, delay_s=0.02))) as service:
        client = JsonClient(service.url, max_concurrent=3)
        assert asyncio.run(run(client)) == asyncio.run(run(client)) == [1] * 8
    assert service.max_at_once == 3


def test_a_pace_is_kept():
    async def run():
        pace = Pace(50)
        await asyncio.gather(*[pace.wait() for _ in range(11)])

    started = time.monotonic()
    asyncio.run(run())
    assert 0.2 <= time.monotonic() - started < 2


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="timeouts must be positive"):
        RetrySettings(timeout_s=0)


# --------------------------------------------------------------------------------------------------------------- cache
class Counter:
    """What is asked; the first ``num_failures`` times it fails."""

    def __init__(self, num_failures: int = 0) -> None:
        self.num_asked, self._num_failures = 0, num_failures

    async def __call__(self):
        self.num_asked += 1
        await asyncio.sleep(0.01)
        if self.num_asked <= self._num_failures:
            raise RemoteUnavailableError("down")
        return {"n": self.num_asked}


def test_an_answer_is_asked_for_once_and_read_by_other_processes(tmp_path):
    ask = Counter()
    for _ in range(2):
        assert asyncio.run(AnswerCache(tmp_path).get({"a": 1, "b": "ü"}, ask=ask)) == {"n": 1}
    assert asyncio.run(AnswerCache(tmp_path).get({"b": "ü", "a": 2}, ask=ask)) == {"n": 2}
    files = sorted(tmp_path.rglob("*"))
    assert len([path for path in files if path.suffix == ".json"]) == 2
    assert not [path for path in files if path.name.startswith(".")]
    assert {"a": 1, "b": "ü"} in [json.loads(path.read_text())["request"] for path in files if path.is_file()]


def test_those_who_ask_the_same_at_once_share_one_request():
    async def run(cache, ask):
        tasks = [asyncio.create_task(cache.get("q", ask=ask)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # the one that started it gives up
        return await asyncio.gather(*tasks, return_exceptions=True)

    ask = Counter()
    first, *others = asyncio.run(run(AnswerCache(None), ask))
    assert isinstance(first, asyncio.CancelledError) and others == [{"n": 1}] * 4 and ask.num_asked == 1


def test_a_failure_is_not_kept(tmp_path):
    cache, ask = AnswerCache(tmp_path), Counter(num_failures=1)
    with pytest.raises(RemoteUnavailableError):
        asyncio.run(cache.get("q", ask=ask))
    assert asyncio.run(cache.get("q", ask=ask)) == {"n": 2}


@pytest.mark.parametrize("damage", ["", "{", '{"request": "other", "answer": 1}', "[]"])
def test_a_damaged_file_is_asked_for_again(tmp_path, damage):
    cache, ask = AnswerCache(tmp_path), Counter()
    asyncio.run(cache.get("q", ask=ask))
    (path,) = tmp_path.rglob("*.json")
    path.write_text(damage)
    assert asyncio.run(cache.get("q", ask=ask)) == {"n": 2}
    assert asyncio.run(cache.get("q", ask=ask)) == {"n": 2}


def test_an_answer_that_cannot_be_written_is_still_an_answer(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert asyncio.run(AnswerCache(tmp_path / "cache").get("q", ask=Counter())) == {"n": 1}
    assert "could not be kept" in caplog.text
