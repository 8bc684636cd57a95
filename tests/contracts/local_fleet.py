"""A fleet whose servers are hf engines in this process, with the ways in which a server fails; for tests of the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from nemo_axpo.engines.fleet.fleet import FleetEngine, FleetSettings
from nemo_axpo.engines.fleet.protocol import ServerDownError, ServerHealth
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.engines.request_checks import RequestChecks
from nemo_axpo.engines.weight_checks import WeightChecks
from nemo_axpo.types import Completion, GenerationRequest

FAST = FleetSettings(request_timeout_s=20, health_every_s=0.02, max_outage_s=2.0)


class LocalServer:
    """One hf engine behind ServerClient."""

    def __init__(self, name: str, engine: HfEngine) -> None:
        self.name, self.engine = name, engine
        self.is_down = False
        """Refuses every call, as a process that is gone."""
        self.is_frozen = False
        """Answers nothing, as a process that was stopped."""
        self.fails_after: int | None = None
        """Goes down when it is sent this many further requests; those on their way break off."""
        self.says_version = True
        self.num_asked = 0
        self._version: int | None = None
        self._calls: set[asyncio.Task] = set()

    def kill(self) -> None:
        """Every call breaks off, and none is answered any more."""
        self.is_down = True
        for call in self._calls:
            call.cancel("killed")

    def restart(self) -> None:
        """Comes back without the weights it had."""
        self.is_down, self._version = False, None

    async def generate(self, request: GenerationRequest, *, timeout_s: float) -> Completion:
        self.num_asked += 1
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                self.kill()
        self._check()
        if self.is_frozen:
            await asyncio.sleep(timeout_s)
            raise ServerDownError(f"{self.name} did not answer within {timeout_s} s")
        call = asyncio.create_task(self.engine.generate(request))
        self._calls.add(call)
        try:
            completion = await call
        except asyncio.CancelledError:
            if self.is_down and not asyncio.current_task().cancelling():
                raise ServerDownError(f"{self.name} broke off") from None
            raise
        finally:
            self._calls.discard(call)
        return replace(completion, policy_version=self._version)

    def health(self) -> ServerHealth:
        self._check()
        if self.is_frozen:
            raise ServerDownError(f"{self.name} did not answer")
        return ServerHealth(-1 if self._version is None else self._version) if self.says_version else ServerHealth()

    def load(self, tensors: Mapping[str, object], *, policy_version: int) -> None:
        self._check()
        self.engine.load_weights(tensors.items(), policy_version=policy_version)
        self._version = policy_version

    async def close(self) -> None:
        await self.engine.close()

    def _check(self) -> None:
        if self.is_down:
            raise ServerDownError(f"{self.name} refused the connection")


class LocalPusher:
    """Hands the tensors over in memory."""

    def push(
        self, named_tensors: Iterable[tuple[str, object]], *, servers: Sequence[LocalServer], policy_version: int
    ) -> Mapping[str, Exception]:
        tensors, failures = dict(named_tensors), {}
        for server in servers:
            try:
                server.load(tensors, policy_version=policy_version)
            except ServerDownError as error:
                failures[server.name] = error
        return failures

    def close(self) -> None:
        pass


def make_fleet(
    config, store, *, num_servers: int = 3, settings: FleetSettings = FAST, **options
) -> tuple[FleetEngine, list[LocalServer]]:
    """A fleet and its servers; ``options`` are the engines'."""
    engines = [HfEngine(config, image_store=store, **options) for _ in range(num_servers)]
    servers = [LocalServer(f"http://server-{number}", engine) for number, engine in enumerate(engines)]
    fleet = FleetEngine(
        servers,
        pusher=LocalPusher(),
        request_checks=RequestChecks(config, image_store=store, max_model_len=options["max_model_len"]),
        weight_checks=WeightChecks(config),
        probe_token_id=next(iter(options["stop_token_ids"])),
        settings=settings,
    )
    return fleet, servers
