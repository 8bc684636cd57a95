"""Which generation servers a replica of the trainer samples from, and which replica brings them the weights.

    servers ≥ replicas   server i belongs to replica i mod R, which pushes to it
    servers < replicas   replica r shares server r mod S, and the lowest replica of a server pushes for all of them

Example: two replicas and five servers: replica 0 has servers 0, 2, 4 and replica 1 has 1, 3. Five replicas and two servers:
replicas 0, 2, 4 share server 0 and replica 0 pushes to it.
"""

from __future__ import annotations

from collections.abc import Sequence


def server_share(urls: Sequence[str], *, replica: int, num_replicas: int) -> tuple[str, ...]:
    """The servers of replica ``replica`` of ``num_replicas``, in the order of ``urls``; none of none."""
    if len(urls) >= num_replicas:
        return tuple(urls[replica::num_replicas])
    return (urls[replica % len(urls)],) if urls else ()


def pushes(num_servers: int, *, replica: int) -> bool:
    """Whether ``replica`` brings the weights to its share of ``num_servers``: one replica does for every server."""
    return replica < num_servers
