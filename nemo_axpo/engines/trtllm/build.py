"""The ``trtllm`` engine of a config."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import Qwen3VLConfig

from nemo_axpo.engines.fleet.build import ServerOptions, build_fleet
from nemo_axpo.engines.fleet.fleet import FleetEngine
from nemo_axpo.engines.trtllm.client import TrtllmClient
from nemo_axpo.engines.trtllm.pusher import Device, HandlePusher, cuda_devices
from nemo_axpo.errors import ConfigError, rule_message


def build_trtllm(hf_config: Qwen3VLConfig, *, servers: ServerOptions, **policy: Any) -> FleetEngine:
    """ConfigError where a server cannot be used, or this process sees no GPU to hand weights over on. ``policy``: of
    :func:`build_fleet`.
    """
    pusher = HandlePusher(weight_devices(), bucket_bytes=servers.sync.bucket_mib * 2**20)
    make_client = partial(TrtllmClient, control_key=servers.control_key)
    return build_fleet(make_client, pusher=pusher, servers=servers, hf_config=hf_config, **policy)


def weight_devices() -> tuple[Device, ...]:
    """The devices on which weights are handed over: every GPU that this process sees. ConfigError without any."""
    if not torch.cuda.is_available():
        rule = "engine.name=trtllm hands weights over in GPU memory, on the host of the servers"
        cure = (
            "train on the servers' host with device=cuda, or set engine.name=vllm_server "
            "(NeMo's key: trainer.axpo.trt_llm.enable=False)"
        )
        raise ConfigError(rule_message(rule, got="no visible GPU", cure=cure))
    return cuda_devices()
