"""Fleets of trtllm clients as the tests build them."""

from __future__ import annotations

from collections.abc import Sequence

from local_fleet import FAST
from tiny_engine_model import VISION_END, request

from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.client import ServedPolicy
from nemo_axpo.engines.fleet.fleet import FleetEngine, FleetSettings
from nemo_axpo.engines.request_checks import RequestChecks
from nemo_axpo.engines.trtllm.client import TrtllmClient
from nemo_axpo.engines.trtllm.pusher import HandlePusher
from nemo_axpo.engines.weight_checks import WeightChecks

BUCKET_BYTES = 50_000
"""The tiny model takes several buckets."""


def make_policy(config, store, *, stop_token_ids, banned_token_ids, name: str | None = None) -> ServedPolicy:
    """``store``: a PictureStore with a picture ``i0``."""
    probes = [request(store.render(1, 2, 3), max_new_tokens=2), request(store.render(1, "i0", 2), max_new_tokens=2)]
    return ServedPolicy(DataUrls(store.model_image), config.image_token_id, stop_token_ids, banned_token_ids, probes, name)


def make_client(url: str, config, store, *, model: str | None = None, control_key=None, **ids) -> TrtllmClient:
    """``ids``: as above."""
    return TrtllmClient(url, make_policy(config, store, name=model, **ids), control_key=control_key)


def make_fleet(
    urls: Sequence[str], config, store, *, devices, stop_token_ids, banned_token_ids, max_model_len: int,
    settings: FleetSettings = FAST, **_: object,
) -> FleetEngine:  # fmt: skip
    """``devices``: through which weights are shared."""
    policy = make_policy(config, store, stop_token_ids=stop_token_ids, banned_token_ids=banned_token_ids)
    clients = [TrtllmClient(url, policy, control_timeout_s=5) for url in urls]
    return FleetEngine(
        clients,
        pusher=HandlePusher(devices, bucket_bytes=BUCKET_BYTES),
        request_checks=RequestChecks(config, image_store=store, max_model_len=max_model_len),
        weight_checks=WeightChecks(config),
        probe_token_id=VISION_END - 10,
        settings=settings,
    )
