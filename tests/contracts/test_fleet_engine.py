"""A fleet of engines: the contract of one engine, and what happens to requests when servers fail."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from engine_suite import TOLERANCE, EngineContract, run, text
from local_fleet import FAST, make_fleet
from tiny_engine_model import BANNED, IM_END, FakeImageStore, request, tiny_config, tiny_model

from nemo_axpo.engines.base import EngineError, PromptMismatchError
from nemo_axpo.engines.fleet.fleet import FleetEngine
from nemo_axpo.engines.fleet.reports import ServerReport, server_metrics


class TestFleetEngine(EngineContract):
    @pytest.fixture
    def make_engine(self):
        return lambda config, store, **options: make_fleet(config, store, **options)[0]


CONFIG = tiny_config()
MODEL = tiny_model(CONFIG)
WEIGHTS = dict(MODEL.state_dict())


@pytest.fixture
def store():
    store = FakeImageStore()
    store.add("i0")
    return store


@pytest.fixture
def fleet_of(store):
    def build(num_servers: int = 3, settings=FAST):
        fleet, servers = make_fleet(
            CONFIG, store, num_servers=num_servers, settings=settings,
            stop_token_ids=(IM_END,), banned_token_ids=BANNED, max_num_seqs=8, max_model_len=160,
        )  # fmt: skip
        fleet.load_weights(WEIGHTS.items(), policy_version=3)
        return fleet, servers

    return build


def rollout_requests(store, *, num_questions: int = 6, num_rollouts: int = 5) -> list:
    """Requests named as the rollouts name them, with the prompt of their question."""
    rng = random.Random(0)
    prompts = [store.render(*text(rng, 12 + number), "i0", 5) for number in range(num_questions)]
    return [
        replace(request(prompt, seed=10 * q + n, max_new_tokens=8 + 3 * n), request_id=f"q{q}/{n}/t0")
        for q, prompt in enumerate(prompts)
        for n in range(num_rollouts)
    ]


def assert_same(completions, expected) -> None:
    """The same tokens; log-probs up to the rounding that other batch mates cause."""
    assert [c.token_ids for c in completions] == [c.token_ids for c in expected]
    for one, other in zip(completions, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)


def reports_of(fleet: FleetEngine) -> dict[str, ServerReport]:
    return {report.server[-1]: report for report in fleet.take_server_reports()}


class TestFailures:
    @pytest.mark.parametrize("fails_after", [0, 1, 4])
    def test_a_server_that_dies_mid_run_loses_nothing(self, fleet_of, store, fails_after):
        requests = rollout_requests(store)
        undisturbed, _ = fleet_of()
        expected = run(undisturbed, *requests)
        fleet, servers = fleet_of()
        servers[1].fails_after = fails_after
        assert_same(run(fleet, *requests), expected)
        reports = reports_of(fleet)
        assert [reports[name].is_up for name in "012"] == [True, False, True]
        assert reports["1"].num_failures == reports["1"].num_requests >= 1
        assert reports["1"].num_taken_out == 1
        metrics = server_metrics(list(reports.values()))
        assert (metrics["engine/servers"], metrics["engine/servers_up"], metrics["engine/lost"]) == (3, 2, 0)
        assert metrics["engine/retries"] == reports["1"].num_failures

    def test_all_but_one_may_die(self, fleet_of, store):
        requests = rollout_requests(store)
        expected = run(fleet_of()[0], *requests)
        fleet, servers = fleet_of()
        servers[0].fails_after, servers[2].fails_after = 2, 3
        assert_same(run(fleet, *requests), expected)

    def test_a_frozen_server_is_noticed_by_its_health(self, fleet_of, store):
        requests = rollout_requests(store)
        expected = run(fleet_of()[0], *requests)
        fleet, servers = fleet_of()
        servers[2].is_frozen = True  # requests would hang for request_timeout_s = 20
        assert_same(asyncio.run(asyncio.wait_for(_all(fleet, requests), timeout=10)), expected)
        assert not reports_of(fleet)["2"].is_up

    def test_a_dead_server_gets_no_requests(self, fleet_of, store):
        fleet, servers = fleet_of()
        servers[0].is_down = True
        run(fleet, *rollout_requests(store))
        asked = servers[0].num_asked
        run(fleet, *rollout_requests(store))
        assert servers[0].num_asked == asked

    def test_a_server_that_kept_its_weights_comes_back(self, fleet_of, store):
        fleet, servers = fleet_of(1)
        servers[0].is_down = True

        async def outage() -> list:
            asyncio.get_running_loop().call_later(0.3, setattr, servers[0], "is_down", False)
            return await _all(fleet, rollout_requests(store))

        completions = asyncio.run(asyncio.wait_for(outage(), timeout=30))
        assert_same(completions, run(fleet_of()[0], *rollout_requests(store)))
        report = reports_of(fleet)["0"]
        assert (report.is_up, report.num_readmitted, report.num_lost) == (True, 1, 0)

    @pytest.mark.parametrize("says_version", [True, False])
    def test_a_restarted_server_waits_for_the_next_push(self, fleet_of, store, says_version):
        requests = rollout_requests(store)
        fleet, servers = fleet_of(2)
        servers[0].says_version = says_version
        servers[0].fails_after = 2
        expected = run(fleet_of()[0], *requests)
        assert_same(run(fleet, *requests), expected)
        servers[0].fails_after = None
        servers[0].restart()
        asked = servers[0].num_asked
        assert_same(run(fleet, *requests), expected)
        assert servers[0].num_asked <= asked + 1  # the probe of a server that cannot say which weights it holds
        fleet.load_weights(WEIGHTS.items(), policy_version=4)
        assert [c.token_ids for c in run(fleet, *requests)] == [c.token_ids for c in expected]
        assert servers[0].num_asked > asked + 1
        report = reports_of(fleet)["0"]
        assert (report.is_up, report.num_readmitted) == (True, 1)

    def test_a_server_that_missed_a_push_is_out_until_it_has_it(self, fleet_of, store):
        requests = rollout_requests(store)
        fleet, servers = fleet_of(2)
        servers[1].is_down = True
        fleet.load_weights(WEIGHTS.items(), policy_version=4)
        servers[1].is_down = False
        assert {c.policy_version for c in run(fleet, *requests)} == {4}
        assert servers[1].num_asked == 0
        fleet.load_weights(WEIGHTS.items(), policy_version=5)
        assert {c.policy_version for c in run(fleet, *requests)} == {5}
        assert servers[1].num_asked > 0

    def test_a_completion_of_old_weights_is_never_handed_on(self, fleet_of, store):
        fleet, servers = fleet_of(2)
        servers[0]._version = 2
        completions = run(fleet, *rollout_requests(store))
        assert {c.policy_version for c in completions} == {3}
        assert not reports_of(fleet)["0"].is_up

    def test_no_server_left_says_what_happened_to_each(self, fleet_of, store):
        fleet, servers = fleet_of(2, replace(FAST, max_outage_s=0.3))
        for server in servers:
            server.is_down = True
        with pytest.raises(
            EngineError, match="(?s)no generation server is left.*server-0 is down: .*refused.*server-1"
        ):
            run(fleet, rollout_requests(store)[0])
        with pytest.raises(EngineError, match="(?s)no generation server answers.*server-0.*start them and resume"):
            fleet.load_weights(WEIGHTS.items(), policy_version=4)
        for server in servers:
            server.restart()
        fleet.load_weights(WEIGHTS.items(), policy_version=4)
        run(fleet, rollout_requests(store)[0])

    def test_retries_end(self, fleet_of, store, monkeypatch):
        fleet, servers = fleet_of(2)

        async def fail(*_, **__):
            raise EngineError("out of memory")

        for server in servers:
            monkeypatch.setattr(server, "generate", fail)
        with pytest.raises(EngineError, match="(?s)'r0' failed on .*server-0.*server-1.*out of memory|no generation"):
            run(fleet, request(store.render(1)))
        assert server_metrics(fleet.take_server_reports())["engine/lost"] <= 1

    def test_another_prompt_is_not_tried_again(self, fleet_of, store, monkeypatch):
        fleet, servers = fleet_of(2)

        async def mismatch(*_, **__):
            raise PromptMismatchError("another prompt")

        for server in servers:
            monkeypatch.setattr(server, "generate", mismatch)
        with pytest.raises(PromptMismatchError):
            run(fleet, request(store.render(1)))
        reports = fleet.take_server_reports()
        assert sorted(r.num_requests for r in reports) == [0, 1]
        assert server_metrics(reports)["engine/prompt_mismatches"] == 1
        assert all(report.is_up for report in reports)

    def test_cancelled_requests_do_not_count_as_failures(self, fleet_of, store):
        fleet, _ = fleet_of(2)

        async def give_up() -> None:
            async with asyncio.timeout(0.05):
                await fleet.generate(request(store.render(1, 2), max_new_tokens=150))

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        assert all(report.is_up and not report.num_failures for report in fleet.take_server_reports())
        run(fleet, *rollout_requests(store))


class TestRouting:
    def test_a_question_stays_where_its_prompt_is(self, fleet_of, store):
        fleet, servers = fleet_of(3)
        requests = rollout_requests(store, num_questions=6)
        run(fleet, *requests)
        assert [server.num_asked for server in servers] == [10, 10, 10]
        # each prompt was computed on one server alone: the others of its question computed its last token
        computed = sum(server.engine.statistics.num_prefill_tokens for server in servers)
        assert computed == sum(len(one.prompt.token_ids) for one in requests[::5]) + 4 * 6

    def test_metrics_of_shared_and_own_servers(self):
        reports = [
            ServerReport("a", True, num_requests=6, num_failures=2, max_in_flight=4),
            ServerReport("a", False, num_requests=2, num_failures=1, num_lost=1, num_taken_out=1, max_in_flight=9),
            ServerReport("b", True, num_requests=4, num_readmitted=1),
        ]
        assert server_metrics(reports) == {
            "engine/servers": 2, "engine/servers_up": 1, "engine/requests": 12, "engine/retries": 2, "engine/lost": 1,
            "engine/prompt_mismatches": 0, "engine/taken_out": 1, "engine/readmitted": 1, "engine/in_flight_max": 9,
            "engine/load_imbalance": 8 / 6,
        }  # fmt: skip
        assert server_metrics([]) == {}


async def _all(fleet: FleetEngine, requests) -> list:
    return await asyncio.gather(*(fleet.generate(one) for one in requests))


class TestSharedServers:
    """Replicas of the trainer that share servers: another one has pushed."""

    def test_weights_that_another_replica_pushed_are_taken_over(self, fleet_of, store):
        fleet, servers = fleet_of()
        for server in servers[:2]:
            server.load(WEIGHTS, policy_version=4)
        fleet.adopt_weights(policy_version=4)
        completions = run(fleet, *rollout_requests(store))
        assert fleet.policy_version == 4 and {c.policy_version for c in completions} == {4}
        assert not reports_of(fleet)["2"].is_up

    @pytest.mark.parametrize("says_version", [True, False])
    def test_servers_that_do_not_show_them_are_refused(self, fleet_of, store, says_version):
        fleet, servers = fleet_of()
        for server in servers:
            server.says_version = says_version
        said = "holds weights 3" if says_version else "does not say which weights it holds"
        with pytest.raises(EngineError, match=f"(?s)no shared server.*{said}.*at least as many engine.servers as replicas"):
            fleet.adopt_weights(policy_version=4)
        with pytest.raises(EngineError, match="no complete weights"):
            run(fleet, *rollout_requests(store)[:1])


class TestOneServer:
    def test_every_server_that_is_up_can_be_asked_alone(self, fleet_of, store):
        fleet, servers = fleet_of()
        servers[2].is_down = True
        (one,) = rollout_requests(store, num_questions=1, num_rollouts=1)

        async def ask():
            return [await server.generate(one) for server in list(fleet.by_server().values())[:2]]

        first, second = asyncio.run(ask())
        assert first.token_ids == second.token_ids and [server.num_asked for server in servers] == [1, 1, 0]

    def test_one_that_fails_is_out_and_nobody_else_is_asked(self, fleet_of, store):
        fleet, servers = fleet_of()
        servers[1].is_down = True
        with pytest.raises(EngineError, match="server-1 refused"):
            run(fleet.by_server()["http://server-1"], *rollout_requests(store, num_questions=1, num_rollouts=1))
        assert list(fleet.by_server()) == ["http://server-0", "http://server-2"]
        assert [server.num_asked for server in servers] == [0, 1, 0]
