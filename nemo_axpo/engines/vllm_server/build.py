"""The ``vllm_server`` engine of a config."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3VLConfig

from nemo_axpo.engines.fleet.build import ServerOptions, build_fleet
from nemo_axpo.engines.fleet.fleet import FleetEngine
from nemo_axpo.engines.vllm_server.client import VllmClient
from nemo_axpo.weight_sync.build import build_pusher


def build_vllm_server(hf_config: Qwen3VLConfig, *, servers: ServerOptions, device: str, **policy: Any) -> FleetEngine:
    """ConfigError where a server cannot be used. ``device``: of the trainer, from which weights are pushed. ``policy``: of
    :func:`build_fleet`.
    """
    pusher = build_pusher(servers.sync, urls=servers.urls, device=device)
    return build_fleet(VllmClient, pusher=pusher, servers=servers, hf_config=hf_config, **policy)
