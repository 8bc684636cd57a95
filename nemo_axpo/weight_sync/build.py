"""The pusher of a run, by the words of its config."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.weight_sync.broadcast import BroadcastTransport
from nemo_axpo.weight_sync.disk import DiskTransport
from nemo_axpo.weight_sync.pusher import BucketPusher
from nemo_axpo.weight_sync.shared_memory import SharedMemoryTransport
from nemo_axpo.weight_sync.sources import BROADCAST, DISK, SHARED_MEMORY, SHARED_MEMORY_DIRECTORY
from nemo_axpo.weight_sync.transports import Transport

AUTO = "auto"


class SyncSettings(Protocol):
    """The section ``engine.sync`` of a config."""

    transport: str
    bucket_mib: int
    directory: str
    address: str | None
    timeout_s: float


def build_pusher(settings: SyncSettings, *, urls: Sequence[str], device: str) -> BucketPusher:
    """Brings weights to the servers at ``urls``. ``device``: of the trainer. ConfigError for what cannot work here."""
    transport = choose_transport(settings.transport, urls=urls)
    return BucketPusher(_build(transport, settings, urls=urls, device=device), bucket_bytes=settings.bucket_mib * 2**20)


def choose_transport(name: str, *, urls: Sequence[str]) -> str:
    """What ``auto`` means: shared memory where every server is on this host, else broadcasts."""
    if name != AUTO:
        return name
    return SHARED_MEMORY if all(is_local(url) for url in urls) and SHARED_MEMORY_DIRECTORY.is_dir() else BROADCAST


def is_local(url: str) -> bool:
    """Whether a URL names this host."""
    host = urlsplit(url).hostname or ""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_towards(url: str) -> str:
    """The address of this host on the way to the one in ``url``; nothing is sent. ConfigError where there is no way."""
    host = urlsplit(url).hostname or ""
    try:
        family, *_, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return probe.getsockname()[0]
    except OSError as error:
        rule = f"the host of the generation server {url} must be known"
        raise ConfigError(rule_message(rule, got=error, cure="correct engine.servers")) from error


def _build(name: str, settings: SyncSettings, *, urls: Sequence[str], device: str) -> Transport:
    if name == SHARED_MEMORY:
        if not SHARED_MEMORY_DIRECTORY.is_dir():
            rule = f"engine.sync.transport=shared_memory needs {SHARED_MEMORY_DIRECTORY} (Linux)"
            raise ConfigError(rule_message(rule, got="a host without it", cure="choose broadcast or disk"))
        return SharedMemoryTransport()
    if name == BROADCAST:
        address = settings.address or address_towards(urls[0])
        return BroadcastTransport(device=device, address=address, timeout_s=settings.timeout_s)
    assert name == DISK, f"{name} is no transport to servers"
    return DiskTransport(settings.directory)
