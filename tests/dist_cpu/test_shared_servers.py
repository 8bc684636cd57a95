"""Three replicas, gloo ranks, on two generation servers: who pushes, who waits, and how all of them stop.

The servers speak vLLM's protocol and sample with the hf engine (``vllm_protocol_server.py``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx2
import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "contracts"), str(Path(__file__).parents[1])]

from engine_suite import TOLERANCE
from forked import ForkedProcess
from server_processes import ServerProcess

WORKER = Path(__file__).parent / "shared_servers_worker.py"
SERVER = "vllm_protocol_server.py"
NUM_RANKS = 3
PUSHES = ("first", "slow", "again")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[list[dict], list[list]]:
    """What every rank found, and what the shared server was asked, in order."""
    directory = tmp_path_factory.mktemp("shared_servers")
    outputs = [directory / f"{rank}.json" for rank in range(NUM_RANKS)]
    with ServerProcess(SERVER) as shared, ServerProcess(SERVER) as own:
        servers = [str(own.pid), shared.url, own.url]
        workers = [
            ForkedProcess(
                WORKER, str(rank), str(NUM_RANKS), directory / "store", output, *servers, log=output.with_suffix(".log")
            )
            for rank, output in enumerate(outputs)
        ]
        statuses = [worker.wait(120) for worker in workers]
        assert not any(statuses), [output.with_suffix(".log").read_text() for output in outputs]
        log = httpx2.get(f"{shared.url}/log").json()
    return [json.loads(output.read_text()) for output in outputs], log


def test_only_the_lowest_replica_of_a_server_pushes(job):
    ranks, log = job
    for push in PUSHES:
        assert [rank[push]["has_pushed"] for rank in ranks] == [True, True, False]
        assert len({rank[push]["bytes_of_job"] for rank in ranks}) == 1
    versions = [entry[1] for entry in log if entry[0] == "update_weight_version" and entry[1] != "updating"]
    assert versions == ["1", "2", "3", "77", "4", "5", "5"], "each once, but the last: a push that failed elsewhere"


def test_every_replica_samples_the_policy_that_was_pushed(job):
    ranks, _ = job
    for push, version in zip(PUSHES, (1, 2, 4)):
        for rank in ranks:
            assert set(rank[push]["versions"]) == {version}
            assert rank[push]["tokens"] == ranks[0][push]["tokens"]
            assert rank[push]["difference"] < TOLERANCE
    assert len({json.dumps(ranks[2][push]["tokens"]) for push in PUSHES}) == len(PUSHES), "weights must matter"


def test_nobody_asks_a_server_anything_while_it_is_pushed_to(job):
    """Nor is it pushed to while another replica tries it out: the last one comes later than the others."""
    _, log = job
    names = [entry[0] for entry in log]
    assert names[: names.index("pause")].count("generate") == 2 * 2, "two probes of each of its replicas"
    starts = [number for number, name in enumerate(names) if name == "pause"]
    ends = [number for number, name in enumerate(names) if name == "resume"]
    assert len(starts) == len(ends) == 6
    for start, end in zip(starts, ends):
        assert not {"weight_info", "generate"} & set(names[start:end])


def test_other_weights_on_a_shared_server_end_the_job_on_every_rank(job):
    ranks, _ = job
    first, second, third = [rank["overwritten"] for rank in ranks]
    assert third.startswith("no shared server holds the new weights")
    assert "holds weights 77, and weights 3 were pushed" in third
    assert first == second and first.startswith("a shared server does not hold the new weights: replica 2: no shared")


def test_a_dead_server_ends_the_job_on_every_rank(job):
    ranks, _ = job
    first, second, third = [rank["killed"] for rank in ranks]
    assert second.startswith("no generation server answers")
    assert first == third
    assert first.startswith("the weights did not reach every engine: EngineError on replica 1: no generation server")
