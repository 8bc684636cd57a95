"""Every transport against real receiving processes: bit for bit, and what happens where something breaks midway."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from receiving_process import ReceivingProcess, digest

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.protocol import ServerDownError
from nemo_axpo.errors import WeightTransferError
from nemo_axpo.weight_sync import groups
from nemo_axpo.weight_sync.broadcast import BroadcastTransport
from nemo_axpo.weight_sync.buckets import pack
from nemo_axpo.weight_sync.disk import DiskTransport
from nemo_axpo.weight_sync.layout import read_layout
from nemo_axpo.weight_sync.pusher import BucketPusher
from nemo_axpo.weight_sync.shared_memory import SharedMemoryTransport

BUCKET_BYTES = 1000
TRANSPORTS = ["shared_memory", "broadcast", "disk"]
needs_shared_memory = pytest.mark.skipif(sys.platform != "linux", reason="POSIX shared memory as files is Linux")


def weights(seed=0):
    """Tensors of every kind: odd sizes, strides, one value, none, wide and narrow types, one larger than a bucket."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.randn(7, 12, generator=draw)
    return {
        "embed": torch.randn(50, 16, generator=draw),
        "half": torch.randn(3, 5, generator=draw).bfloat16(),
        "other half": torch.randn(9, generator=draw).half(),
        "norm": torch.randn(1, generator=draw).bfloat16(),
        "scalar": torch.randn((), generator=draw),
        "empty": torch.empty(0, 4),
        "columns": wide[:, ::2],
        "transposed": wide.T,
        "ids": torch.randint(0, 2**60, (11,), generator=draw),
        "flags": torch.rand(13, generator=draw) < 0.5,
        "eighth": torch.randn(17, generator=draw).to(torch.float8_e4m3fn),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        **{f"layer {n}": torch.randn(3, 31, generator=draw, dtype=torch.float64) for n in range(4)},
    }


@pytest.fixture(params=[pytest.param("shared_memory", marks=needs_shared_memory), "broadcast", "disk"])
def pusher(request, tmp_path):
    pusher = make_pusher(request.param, tmp_path)
    yield pusher
    pusher.close()


def make_pusher(name, directory, *, bucket_bytes=BUCKET_BYTES):
    transport = {
        "shared_memory": SharedMemoryTransport,
        "broadcast": lambda: BroadcastTransport(device="cpu", address="127.0.0.1", timeout_s=20),
        "disk": lambda: DiskTransport(directory),
    }[name]()
    return BucketPusher(transport, bucket_bytes=bucket_bytes)


@pytest.fixture(scope="module")
def processes():
    processes = [ReceivingProcess(f"http://server-{n}") for n in range(2)]
    yield processes
    for process in processes:
        process.close()


@pytest.fixture(name="servers")
def servers_fixture(processes):
    for process in processes:
        try:
            process.order()
        except ServerDownError:
            process.restart()
            process.order()
        process.messages.clear()
    return processes


# --------------------------------------------------------------------------------------------------------- bit for bit
@pytest.mark.parametrize("copies", [False, True])
def test_every_tensor_arrives_bit_for_bit(pusher, servers, copies):
    for server in servers:
        server.order(copies=copies)
    for version in (3, 4):
        sent = weights(seed=version)
        assert pusher.push(iter(sent.items()), servers=servers, policy_version=version) == {}
        for server in servers:
            assert server.serve() == (version, digest(sent.items()))
    assert pusher.num_buckets == 6
    numbers = [message["number"] for message in servers[0].messages]
    assert numbers == 2 * list(range(6)) and [m["is_last"] for m in servers[0].messages[:6]] == [False] * 5 + [True]


def test_a_bucket_is_at_most_its_size_and_a_larger_tensor_travels_alone():
    buckets = list(pack(weights().items(), bucket_bytes=BUCKET_BYTES))
    assert [len(bucket.tensors) for bucket in buckets] == [1, 11, 1, 1, 1, 1]
    assert buckets[0].layout.num_bytes == 3200 > BUCKET_BYTES
    assert all(bucket.layout.num_bytes <= BUCKET_BYTES for bucket in buckets[1:])
    assert [bucket.layout.num_tensors for bucket in buckets] == [1, 12, 13, 14, 15, 16]


def test_the_layout_of_a_bucket():
    tensors = {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.zeros(2, 2), "c": torch.zeros(17)}
    (first, second) = pack(tensors.items(), bucket_bytes=40)
    assert first.layout.to_json() == {
        "number": 0,
        "entries": [["a", "bfloat16", [3], 0], ["b", "float32", [2, 2], 16]],
        "num_bytes": 32,
        "num_tensors": 2,
        "is_last": False,
    }
    assert second.layout.to_json()["entries"] == [["c", "float32", [17], 0]] and second.layout.num_bytes == 80
    assert read_layout(first.layout.to_json()) == first.layout


def test_servers_come_and_go_between_pushes(pusher, servers):
    for version, chosen in enumerate([servers, servers[1:], servers[:1], servers]):
        sent = weights(seed=version)
        assert pusher.push(sent.items(), servers=chosen, policy_version=version) == {}
        assert all(server.serve() == (version, digest(sent.items())) for server in chosen)


def test_a_restarted_server_gets_the_next_push(pusher, servers):
    pusher.push(weights().items(), servers=servers, policy_version=0)
    servers[0].restart()
    assert pusher.push(weights(1).items(), servers=servers, policy_version=1) == {}
    assert all(server.serve() == (1, digest(weights(1).items())) for server in servers)


# ---------------------------------------------------------------------------------------------------------- what breaks
def consumed(stream):
    """The stream, and a list that tells how far it was read: ranks gather every tensor together."""
    seen = []

    def read():
        for name, tensor in stream.items():
            seen.append(name)
            yield name, tensor

    return read(), seen


@pytest.mark.parametrize("orders", [{"dies_at": 2}, {"fails_at": 2}, {"fails_at": "start"}])
def test_a_server_that_fails_serves_nothing_and_the_others_everything(pusher, servers, orders):
    pusher.push(weights().items(), servers=servers, policy_version=0)
    servers[0].order(**orders)
    stream, seen = consumed(weights(1))
    failures = pusher.push(stream, servers=servers, policy_version=1)
    assert servers[0].name in failures and seen == list(weights())
    if orders == {"fails_at": "start"}:  # it refused before anything changed, and its version tells
        assert servers[0].serve() == (0, digest(weights().items()))
    else:
        with pytest.raises(EngineError, match="gone|nothing whole"):
            servers[0].serve()
    if orders == {"fails_at": "start"} or not isinstance(pusher._transport, BroadcastTransport):
        assert set(failures) == {servers[0].name} and servers[1].serve() == (1, digest(weights(1).items()))
    else:  # a broadcast ends for all: whoever is left gets the next push
        assert set(failures) == {servers[0].name, servers[1].name}
        with pytest.raises(EngineError, match="nothing whole"):
            servers[1].serve()
        assert pusher.push(weights(1).items(), servers=servers[1:], policy_version=1) == {}
        assert servers[1].serve() == (1, digest(weights(1).items()))


def test_all_servers_down_still_reads_the_whole_stream(pusher, servers):
    for server in servers:
        server.order(dies_at=1)
    stream, seen = consumed(weights())
    failures = pusher.push(stream, servers=servers, policy_version=0)
    assert set(failures) == {server.name for server in servers} and seen == list(weights())


def test_what_the_stream_raises_comes_out_and_nothing_is_served(pusher, servers):
    def broken():
        yield from list(weights().items())[:-1]
        raise ValueError("tensor 'x' is misshapen")

    pusher.push(weights().items(), servers=servers, policy_version=0)
    with pytest.raises(ValueError, match="misshapen"):
        pusher.push(broken(), servers=servers, policy_version=1)
    for server in servers:
        with pytest.raises(EngineError, match="nothing whole"):
            server.serve()
    assert pusher.push(weights().items(), servers=servers, policy_version=2) == {}
    assert servers[0].serve()[0] == 2


def test_a_bug_in_a_client_is_no_failed_server(pusher, servers, monkeypatch):
    def broken(bucket):
        raise TypeError("a bug")

    monkeypatch.setattr(servers[0], "update", broken)
    with pytest.raises(TypeError, match="a bug"):
        pusher.push(weights().items(), servers=servers, policy_version=0)
    for server in servers:
        with pytest.raises(EngineError, match="nothing whole"):
            server.serve()


@pytest.mark.parametrize("name", [pytest.param("shared_memory", marks=needs_shared_memory), "disk"])
def test_a_bucket_cut_short_is_noticed(name, tmp_path, servers):
    """Reading past the end of a mapped file would kill the server with a bus error."""
    pusher = make_pusher(name, tmp_path)
    honest, cut = servers[1], servers[0]
    update = cut.update

    def cut_then_update(bucket):
        path = Path(bucket.get("file") or f"/dev/shm/{bucket['segment']}")
        if bucket["number"] == 0:
            os.truncate(path, path.stat().st_size - 8)
        update(bucket)

    cut.update = cut_then_update
    try:
        failures = pusher.push(weights().items(), servers=[cut], policy_version=0)
    finally:
        del cut.update
        pusher.close()
    message = str(failures[cut.name])
    assert "WeightTransferError" in message and "bytes" in message and "push again" in message
    with pytest.raises(EngineError, match="nothing whole"):
        cut.serve()
    assert honest.order() is None


def test_a_missing_bucket_and_an_early_end_are_noticed(tmp_path, servers):
    server, pusher = servers[0], make_pusher("disk", tmp_path)
    update = server.update
    for kind, message in (("first", "bucket 0 is next; got bucket 1"), ("last", "ends with its last bucket; got the end")):
        server.update = lambda bucket, kind=kind: (
            None if (bucket["number"] == 0 if kind == "first" else bucket["is_last"]) else update(bucket)
        )
        failures = pusher.push(weights().items(), servers=[server], policy_version=0)
        assert message in str(failures[server.name])
        with pytest.raises(EngineError, match="nothing whole"):
            server.serve()
    del server.update


@needs_shared_memory
def test_a_full_shared_memory_says_what_to_do(servers):
    huge = torch.zeros(1).expand(shutil.disk_usage("/dev/shm").total // 4 + 1)
    pusher = make_pusher("shared_memory", None)
    with pytest.raises(WeightTransferError, match=r"MiB of /dev/shm.*got .* free: lower engine.sync.bucket_mib.*shm-size"):
        pusher.push([("huge", huge)], servers=servers, policy_version=0)
    with pytest.raises(EngineError, match="nothing whole"):
        servers[0].serve()
    assert pusher.push(weights().items(), servers=servers, policy_version=1) == {}
    pusher.close()


@needs_shared_memory
def test_shared_memory_that_fills_up_meanwhile_is_no_bus_error(servers, monkeypatch):
    """Another program took the space between the look at it and the claim."""
    pusher = make_pusher("shared_memory", None)
    before = set(os.listdir("/dev/shm"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WeightTransferError, match="No space left on device.*lower engine.sync.bucket_mib"):
        pusher.push(weights().items(), servers=servers, policy_version=0)
    assert set(os.listdir("/dev/shm")) == before


def test_a_full_disk_says_what_to_do(tmp_path, servers):
    huge = torch.zeros(1).expand(shutil.disk_usage(tmp_path).free // 4 + 1)
    pusher = make_pusher("disk", tmp_path / "weights")
    with pytest.raises(WeightTransferError, match=r"must be written to .*got .* free: free space.*engine.sync.directory"):
        pusher.push([("huge", huge)], servers=servers, policy_version=0)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_directory_that_cannot_be_written_says_what_to_do(tmp_path, servers):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightTransferError, match="another engine.sync.directory"):
        make_pusher("disk", tmp_path / "file" / "weights").push(weights().items(), servers=servers, policy_version=0)


def test_nothing_is_left_behind(tmp_path, servers):
    """Neither files nor shared memory, while and after servers are served."""
    before = set(os.listdir("/dev/shm")) if sys.platform == "linux" else set()
    for name in TRANSPORTS:
        pusher = make_pusher(name, tmp_path / "weights")
        pusher.push(weights().items(), servers=servers, policy_version=0)
        pusher.close()
    assert list((tmp_path / "weights").iterdir()) == []
    assert not before or set(os.listdir("/dev/shm")) == before


def test_a_server_that_never_answers_stops_a_broadcast_in_time(tmp_path, servers):
    transport = BroadcastTransport(device="cpu", address="127.0.0.1", timeout_s=1.5)
    pusher = BucketPusher(transport, bucket_bytes=BUCKET_BYTES)
    sleeper = servers[0]
    sleeper.update = lambda bucket: None  # says that it took the bucket and never joins
    try:
        failures = pusher.push(weights().items(), servers=servers, policy_version=0)
    finally:
        del sleeper.update
        pusher.close()
    assert "not all 2 workers were ready within 1.5 s" in str(failures[sleeper.name])
    assert "not all 2 workers were ready" in str(failures[servers[1].name])


def test_a_worker_that_dies_within_a_broadcast_fails_it_for_all(servers):
    transport = BroadcastTransport(device="cpu", address="127.0.0.1", timeout_s=3)
    pusher = BucketPusher(transport, bucket_bytes=BUCKET_BYTES)
    servers[0].order(dies_within=2)
    failures = pusher.push(weights().items(), servers=servers, policy_version=0)
    assert set(failures) == {server.name for server in servers}
    with pytest.raises(EngineError, match="nothing whole"):
        servers[1].serve()
    assert pusher.push(weights(1).items(), servers=servers[1:], policy_version=1) == {}
    assert servers[1].serve() == (1, digest(weights(1).items()))
    pusher.close()


def test_several_workers_of_a_server_are_ranks_of_their_own(servers):
    class TwoWorkers:
        name, num_workers = "pair", 2

    transport = BroadcastTransport(device="cpu", address="127.0.0.1", timeout_s=5)
    channels = transport.channels([servers[0], TwoWorkers(), servers[1]])
    transport.close()
    ranks = {name: channel["first_rank"] for name, channel in channels.items()}
    assert ranks == {servers[0].name: 1, "pair": 2, servers[1].name: 4}
    assert {channel["num_ranks"] for channel in channels.values()} == {5}


@pytest.mark.parametrize("before", [None, "0"])
def test_an_nccl_group_raises_from_its_waits_and_no_other_group_learns_of_it(monkeypatch, before):
    """Torch's default ends the process where a server is lost. NCCL itself is not here: a stand-in sees how it is built."""
    name, built = "TORCH_NCCL_BLOCKING_WAIT", []

    class Nccl:
        class Options:
            _timeout = None

        def __init__(self, store, rank, size, options):
            built.append((os.environ.get(name), rank, size, options._timeout))

    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(groups.dist, "ProcessGroupNCCL", Nccl, raising=False)
    groups.create_group("nccl", store=None, rank=1, size=3, timeout_s=7.0)
    assert built == [("1", 1, 3, datetime.timedelta(seconds=7))]
    assert os.environ.get(name) == before
