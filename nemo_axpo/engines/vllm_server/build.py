"""The ``vllm_server`` engine of a config."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import Qwen3VLConfig

from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.build import ServerOptions, build_fleet
from nemo_axpo.engines.fleet.fleet import FleetEngine
from nemo_axpo.engines.fleet.probes import start_probes
from nemo_axpo.engines.vllm_server.client import VllmClient
from nemo_axpo.weight_sync.build import build_pusher


def build_vllm_server(
    hf_config: Qwen3VLConfig,
    *,
    image_store: Any,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int],
    max_model_len: int,
    servers: ServerOptions,
    device: str,
) -> FleetEngine:
    """ConfigError where a server cannot be used. ``device``: of the trainer, from which weights are pushed."""
    data_urls, probes = DataUrls(image_store.model_image), start_probes(hf_config, image_store=image_store)
    clients = [
        VllmClient(
            url,
            data_urls=data_urls,
            image_token_id=hf_config.image_token_id,
            stop_token_ids=stop_token_ids,
            banned_token_ids=banned_token_ids,
            probes=probes,
            model=servers.served_model,
        )
        for url in servers.urls
    ]
    return build_fleet(
        clients,
        pusher=build_pusher(servers.sync, urls=servers.urls, device=device),
        hf_config=hf_config,
        image_store=image_store,
        max_model_len=max_model_len,
        probe_token_id=min(stop_token_ids),
        settings=servers.settings,
    )
