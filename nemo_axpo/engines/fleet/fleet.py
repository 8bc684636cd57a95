"""Many generation servers as one engine. No request is lost while one server can serve it.

    request ──▶ checked here ──▶ routed (least loaded, at home where its prefix is) ──▶ server
                                   ▲                                                    │ fails, hangs, is stale
                                   └───────── another server, the same seed ◀───────────┘ and is taken out

A request names its seed, so it may be sent again anywhere: the completion is the same. A server that is out is asked again
from time to time and comes back once it samples and says that it holds the current weights; where it cannot say so, it
waits for the next push.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from nemo_axpo.engines.base import EngineError, PromptMismatchError
from nemo_axpo.engines.fleet.protocol import ServerClient, ServerDownError, ServerHealth, WeightPusher
from nemo_axpo.engines.fleet.reports import ServerReport
from nemo_axpo.engines.fleet.routing import DEFAULT_SPILL_MARGIN, Router, prefix_key
from nemo_axpo.engines.fleet.servers import Server, ServerState
from nemo_axpo.engines.request_checks import RequestChecks
from nemo_axpo.engines.state import EngineState
from nemo_axpo.engines.weight_checks import WeightChecks
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens, SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FleetSettings:
    """How patient the fleet is."""

    request_timeout_s: float = 300.0
    """Of one attempt on one server, waiting in its queue included."""
    max_retries: int = 2
    """Further attempts of a request after its first one failed."""
    health_every_s: float = 5.0
    """Pause between two looks at every server while requests are on their way."""
    max_outage_s: float = 60.0
    """How long a request waits for a server to come back when all are down."""
    spill_margin: int = DEFAULT_SPILL_MARGIN
    """Requests a question's home may have more in flight than the idlest server."""


class FleetEngine(EngineState):
    """Implements ``nemo_axpo.engines.base.Engine`` over servers that are already running."""

    def __init__(
        self,
        clients: Sequence[ServerClient],
        *,
        pusher: WeightPusher,
        request_checks: RequestChecks,
        weight_checks: WeightChecks,
        probe_token_id: int,
        settings: FleetSettings = FleetSettings(),
    ) -> None:
        """``probe_token_id``: any text token; a server that was out must sample a token after it to come back."""
        super().__init__()
        self._servers = {client.name: Server(client) for client in clients}
        assert len(self._servers) == len(clients) > 0, "a fleet has servers, each with a URL of its own"
        self._router = Router(list(self._servers), spill_margin=settings.spill_margin)
        self._pusher, self._settings = pusher, settings
        self._request_checks, self._weight_checks = request_checks, weight_checks
        self._probe = GenerationRequest("probe", RenderedTokens((probe_token_id,)), SamplingParams(1), 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_active = 0

    def take_server_reports(self) -> tuple[ServerReport, ...]:
        """What happened on every server since the last call."""
        return tuple(server.take_report() for server in self._servers.values())

    @property
    def num_buckets(self) -> int:
        """Of the last ``load_weights``."""
        return self._pusher.num_buckets

    @property
    def bucket_bytes(self) -> int:
        """Most bytes of a bucket of weights, but for a single larger tensor."""
        return self._pusher.bucket_bytes

    async def generate(self, request: GenerationRequest) -> Completion:
        """Samples one completion (see the protocol), on as many servers in turn as it takes.

        EngineError when every attempt failed, or no server is left; PromptMismatchError without another attempt.
        """
        with self._serving(request):
            return await self._generate(request)

    def by_server(self) -> dict[str, OneServer]:
        """Every server that is up, by name, as an engine that samples on it alone."""
        return {name: OneServer(self, name) for name, server in self._servers.items() if server.state is ServerState.UP}

    async def generate_on(self, name: str, request: GenerationRequest) -> Completion:
        """One attempt on one server; EngineError takes it out."""
        with self._serving(request):
            return await self._ask(self._servers[name], request)

    @contextlib.contextmanager
    def _serving(self, request: GenerationRequest) -> Iterator[None]:
        """Around a request, which is checked first."""
        self._check_ready()
        self._request_checks.check(request)
        self._enter_loop()
        self._num_active += 1
        try:
            yield
        finally:
            self._num_active -= 1

    async def _generate(self, request: GenerationRequest) -> Completion:
        key, tried = prefix_key(request.request_id), []
        for attempt in range(1 + self._settings.max_retries):
            server = await self._choose(key, tried)
            try:
                return await self._ask(server, request)
            except PromptMismatchError:
                server.num_mismatches += 1
                raise
            except EngineError as error:
                server.num_failures += 1
                tried.append(server.name)
                logger.info("request %s failed on %s: %s", request.request_id, server.name, error)
                if attempt == self._settings.max_retries:
                    server.num_lost += 1
                    raise EngineError(
                        f"request {request.request_id!r} failed on {', '.join(tried)}; the last said: {error}"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    async def _choose(self, key: str, tried: Sequence[str]) -> Server:
        """A server that is up, as soon as there is one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.max_outage_s
        while True:
            self._check_open()
            name = self._router.choose(key, avoid=tried)
            if name is not None:
                return self._servers[name]
            is_hopeless = all(server.state is ServerState.STALE for server in self._servers.values())
            if is_hopeless or loop.time() > deadline:
                raise EngineError(f"no generation server is left:\n{self._describe()}\nstart them and resume the run")
            await asyncio.sleep(min(0.05, self._settings.health_every_s))

    async def _ask(self, server: Server, request: GenerationRequest) -> Completion:
        """One attempt; EngineError takes the server out, until it has shown that it works."""
        call = asyncio.create_task(server.client.generate(request, timeout_s=self._settings.request_timeout_s))
        server.calls.add(call)
        self._router.started(server.name)
        server.num_requests += 1
        server.max_in_flight = max(server.max_in_flight, len(server.calls))
        try:
            completion = await call
        except PromptMismatchError:
            raise
        except EngineError as error:
            self._take_out(server, reason=str(error))
            raise
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            if self._is_closed:
                return Completion((), (), "aborted", self.policy_version)
            raise ServerDownError(f"{server.name} was taken out while the request ran: {server.reason}") from None
        finally:
            server.calls.discard(call)
            self._router.ended(server.name)
        self._check_completion(completion, server)
        return completion

    def _check_completion(self, completion: Completion, server: Server) -> None:
        """EngineError for one that must not reach a rollout; its server is out."""
        if completion.finish_reason == "aborted":
            self._take_out(server, reason="it aborted a request")
            raise EngineError(f"{server.name} aborted the request")
        if completion.policy_version != self._policy_version:
            reason = f"it holds weights {completion.policy_version}, the policy is {self._policy_version}"
            self._take_out(server, reason=reason, state=ServerState.STALE)
            raise EngineError(f"{server.name} is stale: {reason}")

    def _take_out(self, server: Server, *, reason: str, state: ServerState = ServerState.DOWN) -> None:
        if server.state is ServerState.UP:
            server.num_taken_out += 1
            logger.warning("generation server %s is taken out: %s", server.name, reason)
        if server.state is not ServerState.STALE:
            server.state, server.reason = state, reason
        self._router.set_up(server.name, False)

    def _admit(self, server: Server) -> None:
        server.state, server.reason = ServerState.UP, ""
        self._router.set_up(server.name, True)

    # ---------------------------------------------------------------------------------------------- health
    def _enter_loop(self) -> None:
        """Starts watching the servers in the running event loop; forgets the requests of one that was stopped."""
        self._leave_stopped_loop()
        self._loop = asyncio.get_running_loop()
        for server in self._servers.values():
            if server.watcher is None or server.watcher.done():
                server.watcher = self._loop.create_task(self._watch(server))

    def _leave_stopped_loop(self) -> None:
        if self._loop is None or self._loop.is_running():
            return
        self._loop, self._num_active = None, 0
        for server in self._servers.values():
            server.watcher = None
            for _ in server.calls:
                self._router.ended(server.name)
            server.calls.clear()

    async def _watch(self, server: Server) -> None:
        """Looks at a server again and again, for as long as requests are on their way."""
        pause = min(0.1, self._settings.health_every_s)  # what failed at the start is asked soon, then ever more rarely
        while True:
            await asyncio.sleep(pause)
            if not self._num_active:
                return
            await self._look_at(server)
            pause = min(2 * pause, self._settings.health_every_s)

    async def _look_at(self, server: Server) -> None:
        """Takes out a server that no longer answers, with its requests; brings back one that does again."""
        state, policy_version = server.state, self._policy_version
        if state is ServerState.STALE:
            return
        try:
            health = await asyncio.to_thread(server.client.health)
            if state is ServerState.DOWN:
                await server.client.generate(self._probe, timeout_s=self._settings.request_timeout_s)
        except (EngineError, ValueError) as error:
            health = error
        if self._policy_version != policy_version:
            return  # weights were pushed meanwhile, while the event loop stood still: what was found is of before
        if not isinstance(health, ServerHealth):
            self._take_out(server, reason=str(health))
            server.cancel_calls()
            return
        if health.policy_version is not None and health.policy_version != self._policy_version:
            reason = f"it holds weights {health.policy_version}, the policy is {self._policy_version}"
            self._take_out(server, reason=reason, state=ServerState.STALE)
        elif state is ServerState.DOWN and server.state is ServerState.DOWN:
            self._readmit(server, says_version=health.policy_version is not None)

    def _readmit(self, server: Server, *, says_version: bool) -> None:
        """Back among the servers, or out until the next push where nothing tells which weights it holds."""
        if not says_version:
            server.state, server.reason = ServerState.STALE, f"{server.reason}; it cannot say which weights it holds"
            return
        server.num_readmitted += 1
        logger.warning("generation server %s is back", server.name)
        self._admit(server)

    # --------------------------------------------------------------------------------------------- weights
    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], *, policy_version: int) -> None:
        """Pushes the weights to every server that answers, those that were out included. Needs an idle engine.

        A server that fails is out until a later push. ValueError for a tensor that is unknown, misshapen or missing;
        EngineError when no server took the weights. Nothing is served after either until a push succeeds.
        """
        self._start_push()
        answering = self._answering()
        failures = self._pusher.push(
            self._weight_checks.checked(named_tensors),
            servers=[server.client for server in answering],
            policy_version=policy_version,
        )
        for server in answering:
            if server.name in failures:
                self._miss_push(server, failures[server.name])
            else:
                server.num_readmitted += server.state is not ServerState.UP and server.num_taken_out > 0
                self._admit(server)
        if len(failures) == len(answering):
            raise EngineError(f"no generation server took the weights:\n{self._describe()}")
        self._router.forget_homes()
        self._policy_version = policy_version

    def adopt_weights(self, *, policy_version: int) -> None:
        """Takes over the weights that another replica has pushed to the same servers. Needs an idle engine.

        A server that does not say that it holds them is out until a later push; EngineError when none does.
        """
        self._start_push()
        for server in self._answering():
            try:
                held = server.client.health().policy_version
            except EngineError as error:
                self._miss_push(server, error)
                continue
            if held == policy_version:
                self._admit(server)
            else:
                said = "does not say which weights it holds" if held is None else f"holds weights {held}"
                self._miss_push(server, EngineError(f"it {said}, and weights {policy_version} were pushed"))
        if all(server.state is not ServerState.UP for server in self._servers.values()):
            cure = "give every replica a server of its own: at least as many engine.servers as replicas"
            raise EngineError(f"no shared server holds the new weights:\n{self._describe()}\n{cure}")
        self._router.forget_homes()
        self._policy_version = policy_version

    def _start_push(self) -> None:
        self._leave_stopped_loop()
        self._forget_weights(num_in_flight=self._num_active)

    def _answering(self) -> list[Server]:
        """The servers that answer, asked all at once; the others are out."""
        servers = list(self._servers.values())
        with ThreadPoolExecutor(len(servers)) as threads:
            asked = [threads.submit(server.client.health) for server in servers]
        for server, answer in zip(servers, asked):
            error = answer.exception()
            if isinstance(error, EngineError):
                self._miss_push(server, error)
            elif error is not None:
                raise error
        answering = [server for server, answer in zip(servers, asked) if answer.exception() is None]
        if not answering:
            raise EngineError(f"no generation server answers:\n{self._describe()}\nstart them and resume the run")
        return answering

    def _miss_push(self, server: Server, error: Exception) -> None:
        if server.state is ServerState.UP:
            server.num_taken_out += 1
        logger.warning("generation server %s missed the new weights: %s", server.name, error)
        server.state, server.reason = ServerState.STALE, f"it missed the last push: {error}"
        self._router.set_up(server.name, False)

    async def close(self) -> None:
        """Resolves what runs with finish_reason ``aborted`` and closes the connections; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._leave_stopped_loop()
        for server in self._servers.values():
            if server.watcher is not None:
                server.watcher.cancel()
            server.cancel_calls()
        while self._num_active:
            await asyncio.sleep(0)
        await asyncio.gather(*(server.client.close() for server in self._servers.values()))
        self._pusher.close()

    def _describe(self) -> str:
        return "\n".join(
            f"  {server.name} is {server.state.value}: {server.reason}" for server in self._servers.values()
        )


@dataclass(frozen=True)
class OneServer:
    """A server of a fleet as an engine of its own: what it samples is not sampled elsewhere when it fails."""

    fleet: FleetEngine
    name: str

    async def generate(self, request: GenerationRequest) -> Completion:
        """See :meth:`FleetEngine.generate_on`."""
        return await self.fleet.generate_on(self.name, request)
