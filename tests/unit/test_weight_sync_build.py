"""Which transport a config means, which servers a replica has, and what an inference worker has to import."""

from __future__ import annotations

import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nemo_axpo.errors import ConfigError, WeightTransferError
from nemo_axpo.weight_sync.broadcast import BroadcastTransport
from nemo_axpo.weight_sync.build import address_towards, build_pusher, choose_transport, is_local
from nemo_axpo.weight_sync.disk import DiskTransport
from nemo_axpo.weight_sync.layout import read_layout
from nemo_axpo.weight_sync.receiver import WeightReceiver
from nemo_axpo.weight_sync.shared_memory import SharedMemoryTransport
from nemo_axpo.weight_sync.shares import pushes, server_share


def settings(transport="auto", **changes):
    return SimpleNamespace(
        **{"transport": transport, "bucket_mib": 3, "directory": "weights", "address": None, "timeout_s": 5.0} | changes
    )


# ------------------------------------------------------------------------------------------------------------ transport
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.1:8000", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8000", True),
        (f"http://{socket.gethostname()}:80", True),
        ("http://10.0.0.7:8000", False),
        ("http://gpu-node-3:8000", False),
    ],
)
def test_which_urls_are_this_host(url, expected):
    assert is_local(url) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory as files is Linux")
def test_auto_is_shared_memory_on_one_host_and_broadcast_across_hosts():
    local, remote = "http://localhost:1", "http://10.0.0.7:1"
    assert choose_transport("auto", urls=[local, local]) == "shared_memory"
    assert choose_transport("auto", urls=[local, remote]) == "broadcast"
    assert choose_transport("disk", urls=[local]) == "disk"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("shared_memory", SharedMemoryTransport), ("broadcast", BroadcastTransport), ("disk", DiskTransport)],
)
def test_every_transport_is_built_by_its_name(name, kind, tmp_path):
    pusher = build_pusher(settings(name, directory=str(tmp_path)), urls=["http://localhost:1"], device="cpu")
    assert isinstance(pusher._transport, kind) and pusher.bucket_bytes == 3 * 2**20
    pusher.close()


def test_the_address_towards_a_server_is_ours():
    assert address_towards("http://127.0.0.1:8000") == "127.0.0.1"
    with pytest.raises(ConfigError, match="host of the generation server http://no-such-host.invalid:1.*engine.servers"):
        address_towards("http://no-such-host.invalid:1")


# --------------------------------------------------------------------------------------------------------------- shares
def test_five_servers_for_two_replicas():
    assert [server_share("abcde", replica=n, num_replicas=2) for n in range(2)] == [("a", "c", "e"), ("b", "d")]
    assert [pushes(5, replica=n) for n in range(2)] == [True, True]


def test_two_servers_for_five_replicas():
    assert [server_share("ab", replica=n, num_replicas=5) for n in range(5)] == [("a",), ("b",), ("a",), ("b",), ("a",)]
    assert [pushes(2, replica=n) for n in range(5)] == [True, True, False, False, False]


@pytest.mark.parametrize("num_servers", range(1, 8))
@pytest.mark.parametrize("num_replicas", range(1, 8))
def test_every_server_is_used_and_has_exactly_one_pusher(num_servers, num_replicas):
    urls = [f"http://server-{n}" for n in range(num_servers)]
    shares = [server_share(urls, replica=n, num_replicas=num_replicas) for n in range(num_replicas)]
    assert all(shares) and {url for share in shares for url in share} == set(urls)
    pushed = [url for n, share in enumerate(shares) if pushes(num_servers, replica=n) for url in share]
    assert sorted(pushed) == urls


# ------------------------------------------------------------------------------------------------------------- receiver
def test_a_worker_needs_torch_alone():
    """In a process of its own, in which every other package is missing."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("safetensors", "transformers", "megatron", "pydantic", "omegaconf", "PIL"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Missing())
from nemo_axpo.weight_sync.receiver import WeightReceiver
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("nemo_axpo.")}
print(sorted(rooms), WeightReceiver().policy_version)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['errors', 'weight_sync'] None\n"


def message(**changes):
    return {"number": 0, "entries": [], "num_bytes": 8, "num_tensors": 0, "is_last": True} | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"entries": [["w", "float32", [3], 0]], "num_tensors": 1}, "'w' at bytes 0 to 12: the bucket was cut short"),
        ({"entries": [["w", "float32", [1], -4]]}, "'w' at bytes -4 to 0"),
        ({"entries": [["w", "float33", [1], 0]]}, "'float33' is no torch dtype: use the same version"),
        ({"entries": [["w", "float32", [1]]]}, "number, entries, num_bytes.*use the same version"),
    ],
)
def test_a_message_that_makes_no_sense_is_refused(changes, expected):
    with pytest.raises(WeightTransferError, match=expected):
        read_layout(message(**changes))


def test_a_receiver_refuses_what_is_out_of_order():
    receiver = WeightReceiver()
    with pytest.raises(WeightTransferError, match="within an update.*got one outside: start a new update"):
        receiver.receive(message())
    with pytest.raises(WeightTransferError, match="ends with its last bucket; got the end after 0 buckets"):
        receiver.finish(policy_version=1)
    with pytest.raises(WeightTransferError, match="one of shared_memory, broadcast, disk; got 'pigeon'"):
        receiver.start({"transport": "pigeon"})
    receiver.start({"transport": "shared_memory"})
    with pytest.raises(WeightTransferError, match="read the trainer's bucket /dev/shm/no_such_segment.*--ipc=host"):
        receiver.receive(message(segment="no_such_segment"))
    assert receiver.policy_version is None


def test_a_trainer_that_cannot_be_reached_is_named():
    channel = {
        "transport": "broadcast", "backend": "gloo", "host": "127.0.0.1", "port": 1, "group": "g", "is_new": True,
        "num_ranks": 2, "first_rank": 1, "timeout_s": 0.2,
    }  # fmt: skip
    with pytest.raises(WeightTransferError, match="reach the trainer at 127.0.0.1:1.*engine.sync.address"):
        WeightReceiver().start(channel)
    with pytest.raises(WeightTransferError, match="already in the group of an earlier push"):
        WeightReceiver().start(channel | {"is_new": False})
