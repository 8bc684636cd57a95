"""The ``trtllm`` engine of a config."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import Qwen3VLConfig

from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.build import ServerOptions, build_fleet
from nemo_axpo.engines.fleet.fleet import FleetEngine
from nemo_axpo.engines.fleet.probes import start_probes
from nemo_axpo.engines.trtllm.client import TrtllmClient
from nemo_axpo.engines.trtllm.pusher import Device, HandlePusher, cuda_devices
from nemo_axpo.errors import ConfigError, rule_message


def build_trtllm(
    hf_config: Qwen3VLConfig,
    *,
    image_store: Any,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int],
    max_model_len: int,
    servers: ServerOptions,
) -> FleetEngine:
    """ConfigError where a server cannot be used, or this process sees no GPU to hand weights over on."""
    pusher = HandlePusher(weight_devices(), bucket_bytes=servers.sync.bucket_mib * 2**20)
    return build_fleet(
        make_clients(
            hf_config,
            image_store=image_store,
            stop_token_ids=stop_token_ids,
            banned_token_ids=banned_token_ids,
            servers=servers,
        ),
        pusher=pusher,
        hf_config=hf_config,
        image_store=image_store,
        max_model_len=max_model_len,
        probe_token_id=min(stop_token_ids),
        settings=servers.settings,
    )


def weight_devices() -> tuple[Device, ...]:
    """The devices on which weights are handed over: every GPU that this process sees. ConfigError without any."""
    if not torch.cuda.is_available():
        rule = "engine.name=trtllm hands weights over in GPU memory, on the host of the servers"
        cure = "train on the servers' host with device=cuda, or set engine.name=vllm_server"
        raise ConfigError(rule_message(rule, got="no visible GPU", cure=cure))
    return cuda_devices()


def make_clients(
    hf_config: Qwen3VLConfig,
    *,
    image_store: Any,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int],
    servers: ServerOptions,
) -> list[TrtllmClient]:
    """A client per server, not yet checked; pictures are encoded once for all."""
    data_urls, probes = DataUrls(image_store.model_image), start_probes(hf_config, image_store=image_store)
    return [
        TrtllmClient(
            url,
            data_urls=data_urls,
            image_token_id=hf_config.image_token_id,
            stop_token_ids=stop_token_ids,
            banned_token_ids=banned_token_ids,
            probes=probes,
            model=servers.served_model,
            control_key=servers.control_key,
        )
        for url in servers.urls
    ]
