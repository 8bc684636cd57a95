"""Servers in processes of their own that are killed and frozen while they sample: no request is lost, none changes.

The servers speak trtllm-serve's protocol and sample with the hf engine (``trtllm_protocol_server.py``).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from engine_suite import TOLERANCE, run, text
from local_fleet import FAST
from picture_store import PictureStore
from server_processes import ServerProcess
from shared_tensors import shared_file_device
from tiny_engine_model import BANNED, IM_END, request, tiny_config, tiny_model
from trtllm_fleet import make_fleet

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.fleet import FleetEngine
from nemo_axpo.engines.fleet.reports import server_metrics
from nemo_axpo.types import Completion

SCRIPT = "trtllm_protocol_server.py"
WEIGHTS = dict(tiny_model(tiny_config()).state_dict())
SETTINGS = replace(FAST, health_every_s=0.2, max_retries=3)


@pytest.fixture(scope="module")
def store():
    store = PictureStore()
    for number, (height, width) in enumerate([(4, 4), (2, 6), (4, 8)]):
        store.add(f"i{number}", height=height, width=width)
    return store


@pytest.fixture(scope="module")
def requests(store):
    """12 questions of 8 ragged rollouts, two thirds with a picture."""
    rng = random.Random(0)
    prompts = [
        store.render(*text(rng, rng.randrange(1, 25)), *([f"i{q % 3}"] if q % 3 else []), *text(rng, 4))
        for q in range(12)
    ]
    return [
        replace(request(prompt, seed=8 * q + n, max_new_tokens=rng.randrange(15, 70)), request_id=f"q{q}/{n}/t0")
        for q, prompt in enumerate(prompts)
        for n in range(8)
    ]


@pytest.fixture
def start(store, tmp_path):
    """Server processes, and a fleet over them that has its weights; a test may do with them what it likes."""
    processes: list[ServerProcess] = []

    def start(num_servers: int) -> tuple[FleetEngine, list[ServerProcess]]:
        processes.extend(ServerProcess(SCRIPT) for _ in range(num_servers))
        fleet = make_fleet(
            [process.url for process in processes], tiny_config(), store, devices=[shared_file_device(tmp_path)],
            settings=SETTINGS, stop_token_ids=(IM_END,), banned_token_ids=BANNED, max_model_len=160,
        )  # fmt: skip
        fleet.load_weights(WEIGHTS.items(), policy_version=1)
        return fleet, processes

    yield start
    for process in processes:
        process.__exit__()


def assert_same(completions: list[Completion], expected: list[Completion]) -> None:
    """The same tokens and log-probs, but for a draw on the edge between two tokens.

    Who shares a batch changes the last bits of a probability, and one draw in some hundred thousand falls there.
    """
    parted = [c.token_ids != e.token_ids for c, e in zip(completions, expected, strict=True)]
    assert sum(parted) <= 1
    for one, other in zip(completions, expected, strict=True):
        num_equal = num_equal_tokens(one.token_ids, other.token_ids)
        assert one.logprobs[:num_equal] == pytest.approx(other.logprobs[:num_equal], abs=TOLERANCE)


def num_equal_tokens(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def run_with(fleet, requests, *, after: int, accident: Callable[[], None]) -> list[Completion]:
    """All requests at once; the accident happens when ``after`` of them are done."""
    num_done = 0

    async def one(request) -> Completion:
        nonlocal num_done
        completion = await fleet.generate(request)
        num_done += 1
        if num_done == after:
            accident()
        return completion

    async def all_of_them() -> list[Completion]:
        return await asyncio.gather(*(one(request) for request in requests))

    return asyncio.run(asyncio.wait_for(all_of_them(), timeout=120))


def test_killed_frozen_and_restarted_servers_lose_nothing(start, requests):
    fleet, servers = start(3)
    expected = run(fleet, *requests)
    assert {c.finish_reason for c in expected} == {"stop", "length"}
    metrics = server_metrics(fleet.take_server_reports())
    assert (metrics["engine/requests"], metrics["engine/retries"]) == (len(requests), 0)
    assert metrics["engine/load_imbalance"] < 1.2

    assert_same(run_with(fleet, requests, after=5, accident=servers[1].kill), expected)
    metrics = server_metrics(fleet.take_server_reports())
    assert (metrics["engine/servers_up"], metrics["engine/taken_out"], metrics["engine/lost"]) == (2, 1, 0)
    assert metrics["engine/retries"] > 0
    assert metrics["engine/requests"] == len(requests) + metrics["engine/retries"]

    # connections stay open and nothing comes: its health tells. So early that each server is still asked for something
    assert_same(run_with(fleet, requests, after=5, accident=servers[2].freeze), expected)
    metrics = server_metrics(fleet.take_server_reports())
    assert (metrics["engine/servers_up"], metrics["engine/lost"]) == (1, 0)

    # the first comes back with its first weights, the second as it was: both wait for the push
    servers[2].thaw()
    with ServerProcess(SCRIPT, port=servers[1].port) as restarted:
        assert restarted.port == servers[1].port
        assert_same(run(fleet, *requests), expected)
        assert server_metrics(fleet.take_server_reports())["engine/servers_up"] == 1
        fleet.load_weights(WEIGHTS.items(), policy_version=2)
        assert_same(run(fleet, *requests), expected)
        metrics = server_metrics(fleet.take_server_reports())
        assert (metrics["engine/servers_up"], metrics["engine/retries"]) == (3, 0)
        assert metrics["engine/load_imbalance"] < 1.2


def test_a_server_that_dies_during_a_push_is_left_out(start, requests):
    fleet, servers = start(2)

    def dying_stream():
        for number, item in enumerate(WEIGHTS.items()):
            if number == 20:
                servers[0].kill()
            yield item

    fleet.load_weights(dying_stream(), policy_version=2)
    assert {c.policy_version for c in run(fleet, *requests[:20])} == {2}
    assert server_metrics(fleet.take_server_reports())["engine/servers_up"] == 1

    servers[1].kill()
    with pytest.raises(EngineError, match=r"(?s)no generation server is left.*missed the last push.*cannot be reached"):
        run(fleet, requests[0])
    with pytest.raises(EngineError, match="no generation server answers"):
        fleet.load_weights(WEIGHTS.items(), policy_version=3)
