"""A fleet from its clients: every server is checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from transformers import Qwen3VLConfig

from nemo_axpo.config.schema import SyncConfig
from nemo_axpo.engines.fleet.client import ServedPolicy, served_policy
from nemo_axpo.engines.fleet.fleet import FleetEngine, FleetSettings
from nemo_axpo.engines.fleet.protocol import ServerClient, WeightPusher
from nemo_axpo.engines.request_checks import RequestChecks
from nemo_axpo.engines.weight_checks import WeightChecks
from nemo_axpo.errors import ConfigError
from nemo_axpo.weight_sync.build import SyncSettings

MakeClient = Callable[[str, ServedPolicy], ServerClient]
"""From a URL."""


@dataclass(frozen=True)
class ServerOptions:
    """The servers of one replica."""

    urls: tuple[str, ...]
    """At least one."""
    served_model: str | None = None
    """The name under which they must serve the policy; None: any."""
    settings: FleetSettings = field(default_factory=FleetSettings)
    control_key: str | None = field(default=None, repr=False)
    """Secret that signs control calls."""
    sync: SyncSettings = field(default_factory=SyncConfig)
    """How weights are pushed to them."""


def build_fleet(
    make_client: MakeClient,
    *,
    pusher: WeightPusher,
    hf_config: Qwen3VLConfig,
    image_store: Any,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int],
    max_model_len: int,
    servers: ServerOptions,
) -> FleetEngine:
    """The engine, without weights yet. ConfigError with what every server that cannot be used says, and the cure."""
    policy = served_policy(
        hf_config,
        image_store=image_store,
        stop_token_ids=stop_token_ids,
        banned_token_ids=banned_token_ids,
        name=servers.served_model,
    )
    clients = [make_client(url, policy) for url in servers.urls]
    check_servers(clients)
    return FleetEngine(
        clients,
        pusher=pusher,
        request_checks=RequestChecks(hf_config, image_store=image_store, max_model_len=max_model_len),
        weight_checks=WeightChecks(hf_config),
        probe_token_id=min(stop_token_ids),
        settings=servers.settings,
    )


def check_servers(clients: Sequence[ServerClient]) -> None:
    """Asks all at once; ConfigError with a line for each that cannot be used."""
    with ThreadPoolExecutor(len(clients)) as threads:
        asked = [threads.submit(client.check) for client in clients]
    errors = [answer.exception() for answer in asked]
    for error in errors:
        if error is not None and not isinstance(error, ConfigError):
            raise error
    if any(errors):
        raise ConfigError("\n".join(str(error) for error in errors if error))
