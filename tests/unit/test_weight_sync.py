"""A sync on every rank of a job: what is pushed and measured, who waits for whom, and what happens where a rank fails."""

from __future__ import annotations

import asyncio

import pytest
import torch

from nemo_axpo.engines.base import EngineError
from nemo_axpo.weight_sync.sync import SyncRecord, WeightSync, sync_metrics, take_part


class Actor:
    """Ten tensors of 12 bytes, which every rank of a replica puts together with the others."""

    policy_version = 4

    def __init__(self):
        self.num_gathered = 0

    def hf_tensors(self):
        for number in range(10):
            self.num_gathered += 1
            yield f"tensor {number}", torch.full((3,), float(number))


class Engine:
    """Reads so many tensors, then fails as it is told, in the order of ``errors``; then loads everything."""

    def __init__(self, *errors, reads=4):
        self.errors, self.reads, self.loaded, self.adopted = list(errors), reads, [], []

    def load_weights(self, named_tensors, *, policy_version):
        if self.errors:
            for _ in range(self.reads):
                next(named_tensors)
            raise self.errors.pop(0)
        self.loaded.append((dict(named_tensors), policy_version))
        self.policy_version = policy_version

    def adopt_weights(self, *, policy_version):
        if self.errors:
            raise self.errors.pop(0)
        self.adopted.append(policy_version)
        self.policy_version = policy_version


class BucketEngine(Engine):
    num_buckets, bucket_bytes = 3, 48 * 2**20


class Replicas:
    """This rank among others, which say what they are told to, one after the other."""

    is_leader = is_main = True

    def __init__(self, *others, index=0, count=2):
        self.index, self.count, self.others, self.own = index, count, list(others), []

    def gather(self, records, *, kind):
        assert kind is SyncRecord
        self.own += records
        return (*records, *(self.others.pop(0) if self.others and records else ()))


FINE = (SyncRecord(seconds=1.0),)


def test_the_engine_gets_every_tensor_and_the_version():
    actor, engine = Actor(), Engine()
    metrics = WeightSync(actor, engine).push()
    ((loaded, version),) = engine.loaded
    assert version == 4 and list(loaded) == [f"tensor {n}" for n in range(10)] and actor.num_gathered == 10
    assert metrics.keys() == {f"sync/{n}" for n in ("seconds", "bytes", "bytes_per_s", "buckets", "bucket_mib")}
    assert (metrics["sync/bytes"], metrics["sync/buckets"], metrics["sync/bucket_mib"]) == (120.0, 0.0, 0.0)


def test_buckets_are_measured_where_an_engine_has_them():
    metrics = WeightSync(Actor(), BucketEngine()).push()
    assert (metrics["sync/buckets"], metrics["sync/bucket_mib"]) == (3.0, 48.0)


def test_metrics_are_of_the_job():
    records = [SyncRecord(2.0, 300, 3, 2**21), SyncRecord(1.5), SyncRecord(4.0, 500, 5, 2**21)]
    assert sync_metrics(records) == {
        "sync/seconds": 4.0, "sync/bytes": 800.0, "sync/bytes_per_s": 200.0, "sync/buckets": 8.0, "sync/bucket_mib": 2.0,
    }  # fmt: skip


def test_a_rank_without_engine_takes_part():
    actor = Actor()
    metrics = WeightSync(actor, None, replicas=Replicas(FINE)).push()
    assert actor.num_gathered == 10 and metrics["sync/bytes"] == 0.0
    take_part(actor)
    assert actor.num_gathered == 20


# --------------------------------------------------------------------------------------------------------------- failures
def test_a_rank_that_fails_still_helps_the_others_and_all_learn_of_it():
    actor, replicas = Actor(), Replicas(FINE)
    with pytest.raises(ValueError, match="misshapen"):
        WeightSync(actor, Engine(ValueError("misshapen")), replicas=replicas).push()
    assert actor.num_gathered == 10
    (record,) = replicas.own
    assert record.error == "ValueError on replica 0: misshapen" and not record.can_retry and record.num_bytes == 48


def test_the_others_stop_with_its_words():
    failed = (SyncRecord(error="ValueError on replica 1: misshapen"),)
    with pytest.raises(EngineError, match="did not reach every engine: ValueError on replica 1: misshapen"):
        WeightSync(Actor(), Engine(), replicas=Replicas(failed)).push()


def test_servers_that_fail_are_left_out_of_a_second_push():
    actor, engine = Actor(), Engine(EngineError("the broadcast broke"))
    WeightSync(actor, engine, num_servers=2).push()
    assert len(engine.loaded) == 1 and actor.num_gathered == 20


def test_every_rank_pushes_again_where_one_must():
    actor, engine = Actor(), Engine()
    failed = (SyncRecord(error="EngineError on replica 1: gone", can_retry=True),)
    WeightSync(actor, engine, num_servers=2, replicas=Replicas(failed, FINE)).push()
    assert len(engine.loaded) == 2


def test_a_second_failure_ends_the_run():
    engine = Engine(EngineError("gone"), EngineError("gone again"))
    with pytest.raises(EngineError, match="gone again"):
        WeightSync(Actor(), engine, num_servers=2).push()


def test_an_engine_in_process_has_one_chance():
    with pytest.raises(EngineError, match="needs an idle engine"):
        WeightSync(Actor(), Engine(EngineError("needs an idle engine"), EngineError("never"))).push()


def test_an_engine_that_keeps_its_version_is_refused():
    class Forgetful(Engine):
        policy_version = property(lambda self: 3, lambda self, value: None)

    with pytest.raises(EngineError, match="must hold the version that was pushed, 4; it says 3"):
        WeightSync(Actor(), Forgetful()).push()


# --------------------------------------------------------------------------------------------------------- shared servers
@pytest.mark.parametrize(("index", "pushes"), [(0, True), (1, True), (2, False), (3, False), (4, False)])
def test_the_lowest_replica_of_a_server_pushes_and_the_others_take_over(index, pushes):
    actor, engine = Actor(), Engine()
    WeightSync(actor, engine, replicas=Replicas(FINE, FINE, index=index, count=5), num_servers=2).push()
    assert (len(engine.loaded) == 1, engine.adopted) == (pushes, [] if pushes else [4])
    assert actor.num_gathered == 10


def test_with_enough_servers_nobody_takes_over():
    engine = Engine()
    WeightSync(Actor(), engine, replicas=Replicas(FINE, index=1, count=2), num_servers=2).push()
    assert len(engine.loaded) == 1 and engine.adopted == []


def test_a_shared_server_with_other_weights_ends_the_run_everywhere():
    engine = Engine(EngineError("it holds weights 3"))
    with pytest.raises(EngineError, match="it holds weights 3"):
        WeightSync(Actor(), engine, replicas=Replicas(FINE, FINE, index=1), num_servers=1).push()
    failed = (SyncRecord(error="replica 1: it holds weights 3"),)
    with pytest.raises(EngineError, match="a shared server does not hold the new weights: replica 1: it holds weights 3"):
        WeightSync(Actor(), Engine(), replicas=Replicas(FINE, failed), num_servers=1).push()


# ------------------------------------------------------------------------------------------------------------------ proof
@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [3])])
def test_every_so_many_updates_are_proven(every, expected):
    """Counted by the step, so that a resumed run proves the same ones."""
    proven = []

    async def prove():
        return 0.25

    sync = WeightSync(Actor(), Engine(), prove=prove, prove_every=every)
    for index in range(6):
        metrics = asyncio.run(sync.after_update(index))
        if "sync/proof" in metrics:
            assert metrics["sync/proof"] == 0.25 and metrics["sync/proof_s"] >= 0
            proven.append(index)
    assert proven == expected


def test_the_proof_comes_after_the_push():
    engine = Engine()

    async def prove():
        assert len(engine.loaded) == 1
        raise ValueError("engine and trainer differ")

    with pytest.raises(ValueError, match="engine and trainer differ"):
        asyncio.run(WeightSync(Actor(), engine, prove=prove).after_update(0))
