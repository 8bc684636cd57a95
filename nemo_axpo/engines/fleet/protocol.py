"""What the fleet needs of one generation server, whatever serves it, and of what brings weights to several.

Sampling is asynchronous. Everything else is a synchronous call which any thread may make: weights are pushed from
synchronous code while the event loop of the rollouts stands still.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nemo_axpo.engines.base import EngineError
from nemo_axpo.types import Completion, GenerationRequest


class ServerDownError(EngineError):
    """The server cannot be reached, did not answer in time or broke off: the request may be sent to another one."""


@dataclass(frozen=True)
class ServerHealth:
    """What a living server says of itself."""

    policy_version: int | None = None
    """Version of its weights; None where it does not say. A restarted server must not report the version it had."""


class ServerClient(Protocol):
    """One server. Its methods raise ServerDownError when it cannot be reached, EngineError when it fails otherwise."""

    @property
    def name(self) -> str:
        """The server's URL, for messages and metrics."""
    def check(self) -> None:
        """Whether this server may be used at all; called once, before training.

        ConfigError with the cure: it cannot be reached, serves another model or a version that cannot return prompt ids.
        """

    async def generate(self, request: GenerationRequest, *, timeout_s: float) -> Completion:
        """One completion; the request has passed ``RequestChecks``. Cancelling it aborts the request on the server.

        The version of the completion is the one that the server reports, else of the last ``finish_update``.
        ServerDownError after ``timeout_s``; PromptMismatchError unless the server sampled from exactly this prompt;
        ValueError for a request that this server refuses and every other one would.
        """

    def health(self) -> ServerHealth:
        """Asks the server; ServerDownError unless it can sample."""

    def start_update(self, channel: Mapping[str, Any]) -> None:
        """Opens a weight update. ``channel``: how the weights come, in the words of the transport; JSON values."""

    def update(self, bucket: Mapping[str, Any]) -> None:
        """Has the server take one bucket of weights; returns when it has. JSON values, as above."""

    def finish_update(self, *, policy_version: int) -> None:
        """Ends the update: every cache of the old weights is dropped before it returns."""

    def release_memory(self) -> None:
        """Gives the memory of weights and cache back to the device; ``generate`` fails until it is resumed."""

    def resume_memory(self) -> None:
        """Takes the memory again; the weights must be pushed before the next ``generate``."""

    async def close(self) -> None:
        """Closes the connections; the server goes on running."""


class WeightPusher(Protocol):
    """Brings weights to several servers at once; one implementation per transport."""

    num_buckets: int
    """Of the last push."""
    bucket_bytes: int
    """Most bytes of a bucket, but for a single larger tensor."""

    def push(
        self, named_tensors: Iterable[tuple[str, Any]], *, servers: Sequence[ServerClient], policy_version: int
    ) -> Mapping[str, Exception]:
        """Streams ``named_tensors`` (HF names, full tensors), consumed exactly once, to all ``servers``.

        Returns what went wrong by the name of the server: every other one holds all weights and has finished its update.
        A server that fails does not stop the push to the others. Whatever ``named_tensors`` itself raises comes out.
        """

    def close(self) -> None:
        """Frees what the transport holds."""
