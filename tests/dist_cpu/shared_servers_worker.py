"""One of several gloo ranks, a replica each, that share generation servers: pushes, samples, and meets two accidents.

shared_servers_worker.py RANK NUM_RANKS STORE_FILE OUTPUT_FILE PID_OF_SERVER_1 URL…
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

import httpx2
import torch
import torch.distributed as dist
from picture_store import tiny_processor
from PIL import Image
from tiny_engine_model import (
    BANNED,
    IM_END,
    IMAGE,
    VISION_END,
    VISION_START,
    reference_logprobs,
    request,
    tiny_config,
    tiny_model,
)

from nemo_axpo.config.schema import SyncConfig
from nemo_axpo.data.images import ImageStore
from nemo_axpo.distributed.process_replicas import ProcessReplicas
from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.build import ServerOptions
from nemo_axpo.engines.fleet.fleet import FleetEngine, FleetSettings
from nemo_axpo.engines.vllm_server.build import build_vllm_server
from nemo_axpo.types import GenerationRequest, RenderedTokens
from nemo_axpo.weight_sync.shares import server_share
from nemo_axpo.weight_sync.sync import WeightSync

SLOW_S = 0.5
"""How much later than the others the last replica is ready, and how long a slow push takes at least."""


@dataclass
class Policy:
    """What a sync needs of an actor: random weights, others in every version."""

    policy_version: int = 0
    pause_s: float = 0.0

    def hf_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for number, named in enumerate(tiny_model(tiny_config(), seed=self.policy_version).state_dict().items()):
            time.sleep(self.pause_s if number == 0 else 0)
            yield named


class Rank:
    """A replica's policy and its engine."""

    def __init__(self, rank: int, *, num_ranks: int, urls: list[str]) -> None:
        self.rank, self.num_ranks, self.urls = rank, num_ranks, urls
        self.policy, self.images = Policy(), ImageStore(tiny_processor())
        replicas = ProcessReplicas([[number] for number in range(num_ranks)], timeout_s=60)
        time.sleep(SLOW_S if rank == num_ranks - 1 else 0)
        self.engine = self._engine()
        self.sync = WeightSync(self.policy, self.engine, replicas=replicas, num_servers=len(urls))

    def _engine(self) -> FleetEngine:
        share = server_share(self.urls, replica=self.rank, num_replicas=self.num_ranks)
        settings = FleetSettings(request_timeout_s=20, health_every_s=0.2, max_outage_s=2)
        return build_vllm_server(
            tiny_config(), image_store=self.images, stop_token_ids=(IM_END,), banned_token_ids=BANNED, max_model_len=160,
            servers=ServerOptions(share, settings=settings, sync=SyncConfig(timeout_s=20)), device="cpu",
        )  # fmt: skip

    def pushed(self, version: int) -> dict:
        """What this rank learns from a push and samples after it."""
        self.policy.policy_version = version
        metrics = self.sync.push()
        requests = self.requests()
        completions = [asyncio.run(self.engine.generate(one)) for one in requests]
        model = tiny_model(tiny_config(), seed=version)
        differences = [
            (torch.tensor(c.logprobs) - reference_logprobs(model, one.prompt, c, store=self.images)).abs().max().item()
            for one, c in zip(requests, completions, strict=True)
        ]
        return {
            "bytes_of_job": metrics["sync/bytes"],
            "has_pushed": self.engine.num_buckets > 0,
            "versions": [self.engine.policy_version, *(c.policy_version for c in completions)],
            "tokens": [c.token_ids for c in completions],
            "difference": max(differences),
        }

    def refused(self, version: int) -> str:
        """What a push says that must fail."""
        self.policy.policy_version = version
        try:
            self.sync.push()
        except EngineError as error:
            return str(error)
        return "no error"

    def requests(self) -> list[GenerationRequest]:
        """One of text, one with a picture."""
        image_id = self.images.add(Image.linear_gradient("L").resize((16, 24)).convert("RGB"))
        pads = [IMAGE] * self.images.features(image_id).num_tokens
        shown = RenderedTokens((5, VISION_START, *pads, VISION_END, 9), (image_id,))
        prompts = (RenderedTokens(tuple(range(20, 34))), shown)
        return [request(prompt, seed=seed, max_new_tokens=12) for seed, prompt in enumerate(prompts)]


def overwritten_after(load_weights: Callable[..., None], *, url: str) -> Callable[..., None]:
    """A push behind which somebody else's arrives at once."""

    def load_and_lose(named_tensors, *, policy_version: int) -> None:
        load_weights(named_tensors, policy_version=policy_version)
        httpx2.post(f"{url}/update_weight_version", json={"new_version": "77"}).raise_for_status()

    return load_and_lose


def run(rank: int, *, num_ranks: int, pid: int, urls: list[str]) -> dict:
    """All pushes of one rank."""
    here = Rank(rank, num_ranks=num_ranks, urls=urls)
    found = {"first": here.pushed(1)}

    here.policy.pause_s = SLOW_S if rank == 0 else 0.0
    found["slow"] = here.pushed(2)
    here.policy.pause_s = 0.0

    load_weights = here.engine.load_weights
    if rank == 0:
        here.engine.load_weights = overwritten_after(load_weights, url=urls[0])
    found["overwritten"] = here.refused(3)
    here.engine.load_weights = load_weights
    found["again"] = here.pushed(4)

    if rank == 1:
        os.kill(pid, signal.SIGKILL)
    found["killed"] = here.refused(5)
    asyncio.run(here.engine.close())
    return found


def main() -> None:
    rank, num_ranks, pid = (int(sys.argv[number]) for number in (1, 2, 5))
    store, output = sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    output.write_text(json.dumps(run(rank, num_ranks=num_ranks, pid=pid, urls=sys.argv[6:])))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
