"""The sending ends of the transports, on the trainer's side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nemo_axpo.engines.fleet.protocol import ServerClient
from nemo_axpo.weight_sync.buckets import Bucket


class Transport(Protocol):
    """Brings buckets to where servers can take them. WeightTransferError names what is in the way, and the cure."""

    is_collective: bool
    """Whether every server that began the update must take every bucket, or none can."""

    def channels(self, servers: Sequence[ServerClient]) -> Mapping[str, Mapping[str, Any]]:
        """Begins an update: what ``start_update`` says to each server, by its name."""

    def stage(self, bucket: Bucket) -> dict[str, Any]:
        """Copies a bucket to its place; returns the message with which servers take it. The one before stays readable."""

    def send(self, *, failure: Callable[[], str | None]) -> None:
        """Called when all servers have the message; ``failure`` says why one of them will not take the bucket."""

    def end(self, *, has_failed: bool) -> None:
        """Ends an update, or the attempt to begin one."""

    def close(self) -> None:
        """Frees everything; an update may begin anew."""


def num_workers(server: ServerClient) -> int:
    """Processes of a server that hold weights, its tensor-parallel ranks: each is a rank of a broadcast.

    A client whose server has more than one says so in an attribute of this name.
    """
    return getattr(server, "num_workers", 1)
