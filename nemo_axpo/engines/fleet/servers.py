"""What the fleet knows of each of its servers."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field, fields

from nemo_axpo.engines.fleet.protocol import ServerClient
from nemo_axpo.engines.fleet.reports import ServerReport
from nemo_axpo.types import Completion


class ServerState(enum.Enum):
    """Whether requests may go to a server."""

    UP = "up"
    DOWN = "down"
    """It failed; it is asked from time to time, and comes back when it answers and holds the current weights."""
    STALE = "stale"
    """It answers but does not hold the current weights: out until the next push."""


@dataclass(eq=False)
class Server:
    """One server, its state and its counters since the last report."""

    client: ServerClient
    state: ServerState = ServerState.STALE
    reason: str = "no weights were pushed to it yet"
    """Why it is not up."""
    calls: set[asyncio.Task[Completion]] = field(default_factory=set)
    """Requests on their way."""
    watcher: asyncio.Task[None] | None = None
    """Looks at it from time to time."""
    num_requests: int = 0
    num_failures: int = 0
    num_lost: int = 0
    num_mismatches: int = 0
    num_taken_out: int = 0
    num_readmitted: int = 0
    max_in_flight: int = 0

    @property
    def name(self) -> str:
        """URL."""
        return self.client.name

    def cancel_calls(self) -> None:
        """Breaks off every request on its way; those who wait for them go elsewhere."""
        for call in self.calls:
            call.cancel()

    def take_report(self) -> ServerReport:
        """The counters since the last report, which start again at 0."""
        names = [field.name for field in fields(ServerReport) if field.name not in ("server", "is_up")]
        counters = {name: getattr(self, name) for name in names}
        for name in names:
            setattr(self, name, 0)
        return ServerReport(self.name, self.state is ServerState.UP, **counters)
