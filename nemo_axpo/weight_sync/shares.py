"""Which generation servers a replica of the trainer samples from, and which replica brings them the weights.

    servers ≥ replicas   server i belongs to replica i mod R, which pushes to it
    servers < replicas   replica r shares server r mod S, and the lowest replica of a server pushes for all of them

Example: two replicas and five servers: replica 0 has servers 0, 2, 4 and replica 1 has 1, 3. Five replicas and two servers:
replicas 0, 2, 4 share server 0 and replica 0 pushes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerShare:
    """What one replica has."""

    urls: tuple[str, ...]
    """In the order of the config."""
    is_pusher: bool
    """Whether this replica brings its servers the weights; where not, another one does."""


def server_share(urls: Sequence[str], *, replica: int, num_replicas: int) -> ServerShare:
    """The share of replica ``replica`` of ``num_replicas``; together they have every server, and each has one pusher."""
    assert urls and 0 <= replica < num_replicas, "a share of no server, or of a replica that does not exist"
    if len(urls) >= num_replicas:
        return ServerShare(tuple(urls[replica::num_replicas]), is_pusher=True)
    return ServerShare((urls[replica % len(urls)],), is_pusher=replica < len(urls))
