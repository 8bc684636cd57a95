"""Whatever servers do, in whatever order: a request is served once it meets a server that works, with the completion of its
seed, and nothing is counted that did not happen."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.fleet import FleetEngine, FleetSettings
from nemo_axpo.engines.fleet.protocol import ServerDownError, ServerHealth
from nemo_axpo.engines.fleet.reports import server_metrics
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens, SamplingParams

FAULTS = ("serve", "serve slowly", "break off", "fail", "abort", "serve old weights", "die")


class AnyRequest:
    def check(self, request):
        return ()


class AnyWeights:
    def checked(self, named_tensors):
        return iter(named_tensors)


class Pusher:
    def push(self, named_tensors, *, servers, policy_version):
        list(named_tensors)
        for server in servers:
            server.policy_version = policy_version
        return {}

    def close(self):
        pass


class ScriptedServer:
    """Does to its requests, one after the other, what the script says, and serves when it is over."""

    def __init__(self, number: int, script: list[str]) -> None:
        self.name, self.script = f"http://s{number}", script
        self.policy_version, self.is_dead, self.num_served = -1, False, 0

    async def generate(self, request, *, timeout_s):
        if self.is_dead:
            raise ServerDownError("refused")
        act = "serve" if request.request_id == "probe" or not self.script else self.script.pop(0)
        await asyncio.sleep(0.003 if act == "serve slowly" else 0)
        if act == "die":
            self.is_dead = True
        if act in ("die", "break off"):
            raise ServerDownError("broke off")
        if act == "fail":
            raise EngineError("500")
        if act == "abort":
            return Completion((), (), "aborted", self.policy_version)
        self.num_served += request.request_id != "probe"
        return completion_of(request, version=self.policy_version - (act == "serve old weights"))

    def health(self):
        if self.is_dead:
            raise ServerDownError("refused")
        return ServerHealth(self.policy_version)

    async def close(self):
        pass


def completion_of(request: GenerationRequest, *, version: int) -> Completion:
    return Completion((request.seed, len(request.prompt.token_ids)), (-0.5, -1.5), "stop", version)


def requests_of(num: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"q{n // 4}/{n % 4}/t0", RenderedTokens((1,) * (n // 4 + 1)), SamplingParams(2), n)
        for n in range(num)
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scripts=st.lists(st.lists(st.sampled_from(FAULTS), max_size=12), min_size=1, max_size=4),
    num_requests=st.integers(1, 24),
)
def test_no_request_is_lost_while_one_server_works(scripts, num_requests):
    servers = [ScriptedServer(number, list(script)) for number, script in enumerate([*scripts, []])]
    # attempts enough for every fault of the scripts to meet the same request
    patience = FleetSettings(
        max_retries=sum(map(len, scripts)) + 1, health_every_s=0.002, request_timeout_s=5, max_outage_s=5
    )
    fleet = FleetEngine(
        servers, pusher=Pusher(), request_checks=AnyRequest(), weight_checks=AnyWeights(), probe_token_id=0,
        settings=patience,
    )  # fmt: skip
    fleet.load_weights([("w", torch.zeros(1))], policy_version=5)
    requests = requests_of(num_requests)

    async def all_of_them():
        return await asyncio.gather(*(fleet.generate(one) for one in requests))

    completions = asyncio.run(asyncio.wait_for(all_of_them(), timeout=60))
    assert completions == [completion_of(one, version=5) for one in requests]
    metrics = server_metrics(fleet.take_server_reports())
    assert metrics["engine/requests"] - metrics["engine/retries"] == num_requests
    assert metrics["engine/lost"] == 0
    assert set(fleet._router.in_flight.values()) == {0}

    for server in servers:
        server.script.clear()
        server.is_dead = False
    fleet.load_weights([("w", torch.zeros(1))], policy_version=6)
    again = asyncio.run(asyncio.wait_for(all_of_them(), timeout=60))
    assert again == [replace(one, policy_version=6) for one in completions]
    metrics = server_metrics(fleet.take_server_reports())
    assert (metrics["engine/servers_up"], metrics["engine/retries"]) == (len(servers), 0)


class SlowToTell(ScriptedServer):
    """What its first look finds is told late; a request lasts until it is looked at."""

    def __init__(self) -> None:
        super().__init__(0, [])
        self.looks_to_hold, self.is_asked, self.may_tell = 0, threading.Event(), threading.Event()

    async def generate(self, request, *, timeout_s):
        while not self.is_asked.is_set():
            await asyncio.sleep(0.001)
        return await super().generate(request, timeout_s=timeout_s)

    def health(self):
        found = super().health()
        if self.looks_to_hold:
            self.looks_to_hold -= 1
            self.is_asked.set()
            self.may_tell.wait(10.0)
        return found


def test_a_look_from_before_a_push_says_nothing_of_the_weights_after_it():
    server = SlowToTell()
    fleet = FleetEngine(
        [server], pusher=Pusher(), request_checks=AnyRequest(), weight_checks=AnyWeights(), probe_token_id=0,
        settings=FleetSettings(health_every_s=0.002),
    )  # fmt: skip
    fleet.load_weights([("w", torch.zeros(1))], policy_version=5)
    server.looks_to_hold = 1

    async def two_steps():
        await fleet.generate(requests_of(1)[0])
        fleet.load_weights([("w", torch.zeros(1))], policy_version=6)
        server.may_tell.set()
        await asyncio.sleep(0.05)
        return await fleet.generate(requests_of(1)[0])

    assert asyncio.run(asyncio.wait_for(two_steps(), timeout=60)).policy_version == 6
    assert server_metrics(fleet.take_server_reports())["engine/taken_out"] == 0
