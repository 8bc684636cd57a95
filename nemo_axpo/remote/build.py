"""The client of a service as its section of the config says."""

from __future__ import annotations

import os

from nemo_axpo.config.schema import EndpointConfig, JudgeConfig
from nemo_axpo.remote.json_client import JsonClient, RetrySettings


def build_client(section: JudgeConfig | EndpointConfig) -> JsonClient:
    """A connection to ``section.url``; the key comes from the environment."""
    retry = RetrySettings(section.timeout_s, max_retries=section.max_retries, max_time_s=section.max_time_s)
    key = os.environ.get(section.key_variable) if section.key_variable else None
    return JsonClient(section.url, key=key, retry=retry, max_concurrent=section.max_concurrent)
