"""Fleets of trtllm clients as the tests build them."""

from __future__ import annotations

from collections.abc import Sequence

from local_fleet import FAST
from tiny_engine_model import VISION_END, request

from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.fleet import FleetEngine, FleetSettings
from nemo_axpo.engines.request_checks import RequestChecks
from nemo_axpo.engines.trtllm.client import TrtllmClient
from nemo_axpo.engines.trtllm.pusher import HandlePusher
from nemo_axpo.engines.weight_checks import WeightChecks

BUCKET_BYTES = 50_000
"""The tiny model takes several buckets."""


def make_client(url: str, config, store, *, stop_token_ids, banned_token_ids, **options) -> TrtllmClient:
    """``store``: a PictureStore with a picture ``i0``."""
    probes = [request(store.render(1, 2, 3), max_new_tokens=2), request(store.render(1, "i0", 2), max_new_tokens=2)]
    return TrtllmClient(
        url, data_urls=DataUrls(store.model_image), image_token_id=config.image_token_id, stop_token_ids=stop_token_ids,
        banned_token_ids=banned_token_ids, probes=probes, **options,
    )  # fmt: skip


def make_fleet(
    urls: Sequence[str], config, store, *, devices, stop_token_ids, banned_token_ids, max_model_len: int,
    settings: FleetSettings = FAST, **_: object,
) -> FleetEngine:  # fmt: skip
    """``devices``: through which weights are shared."""
    clients = [
        make_client(
            url, config, store, stop_token_ids=stop_token_ids, banned_token_ids=banned_token_ids, control_timeout_s=5
        )
        for url in urls
    ]
    return FleetEngine(
        clients,
        pusher=HandlePusher(devices, bucket_bytes=BUCKET_BYTES),
        request_checks=RequestChecks(config, image_store=store, max_model_len=max_model_len),
        weight_checks=WeightChecks(config),
        probe_token_id=VISION_END - 10,
        settings=settings,
    )
