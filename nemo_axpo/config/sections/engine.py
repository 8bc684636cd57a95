"""The generation engine, and how the policy's weights reach it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from nemo_axpo.config.sections.base import Count, NonNegative, Positive, Section
from nemo_axpo.engines.names import SERVER_ENGINES, UNSHARED_SERVER_ENGINES
from nemo_axpo.errors import rule_message


class SyncConfig(Section):
    """How the policy's weights reach the engines after an update, and how that is proven."""

    transport: Literal["auto", "iterator", "shared_memory", "broadcast", "disk"] = "auto"
    """In-process engines read the actor's tensors one by one (iterator). Servers get buckets: in shared memory on the
    trainer's host, by broadcasts across hosts (NCCL from a GPU, gloo from a CPU), or as files. auto: shared memory where
    every server is on this host, else broadcasts; trtllm has a way of its own."""
    bucket_mib: Count = 256
    """Size of a bucket; a larger tensor is a bucket of its own. Two exist at a time."""
    directory: str = "outputs/weights"
    """Of the files; servers must see it under the same path."""
    address: str | None = None
    """Under which servers reach this host for broadcasts; null: the one on the way to the first server."""
    timeout_s: Positive = 600.0
    """How long a broadcast waits for all servers."""
    proof_every: Annotated[int, Field(ge=0)] = 1
    """Updates between two proofs that engine and trainer agree on a few probes; 0: never after the start."""


class VllmConfig(Section):
    """vLLM in the trainer's process."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the GPU's memory for its weights, activations and cache; the trainer needs the rest."""
    kv_cache_mib: Count | None = None
    """Memory of the KV cache; null: what gpu_memory_utilization leaves, on a CPU 1024."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation: starts at once, samples more slowly. Always so on a CPU."""
    max_num_batched_tokens: Count | None = None
    """Tokens of one step; longer prompts are computed in pieces, but on a CPU, where a row must fit. null: vLLM's default."""


class EngineConfig(Section):
    """The generation engine of the rollouts."""

    name: Literal["hf", "vllm", "vllm_server", "trtllm"] = "hf"
    """hf and vllm sample in the trainer's process; vllm_server and trtllm are asked at ``servers``."""
    max_num_seqs: Count = 128
    """Requests decoded at the same time; more wait. Servers have a limit of their own."""
    max_model_len: Count = 20_480
    """Longest row in tokens, images included, the engine can hold."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What it computes in; of servers, what they were started with."""
    servers: tuple[str, ...] = ()
    """URLs of running generation servers, dealt to the replicas in turn: server i to replica i modulo their number; replicas
    beyond the number of servers share them."""
    served_model: str | None = None
    """Name under which the servers must serve the policy; null: any."""
    request_timeout_s: Positive = 300.0
    """Of one attempt on one server, waiting in its queue included."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts of a request that failed, on another server where there is one."""
    health_every_s: Positive = 5.0
    """Pause between two looks at every server while requests are on their way."""
    max_outage_s: NonNegative = 60.0
    """How long a request waits for a server to come back when all are down."""
    vllm: VllmConfig = VllmConfig()
    sync: SyncConfig = SyncConfig()

    def problems(self, *, num_replicas: int) -> Iterator[str]:
        """Servers that the engine lacks, or has no use for; whether they answer is asked when the engine is built."""
        yield from self._transport_problems()
        if self.name in SERVER_ENGINES:
            yield from self._server_problems(num_replicas=num_replicas)
        elif self.servers:
            rule = f"engine.servers is for the engines {', '.join(SERVER_ENGINES)}"
            cure = "remove it, or choose one of them"
            yield rule_message(rule, got=f"engine.name={self.name}", cure=cure)

    def _server_problems(self, *, num_replicas: int) -> Iterator[str]:
        is_unshared = self.name in UNSHARED_SERVER_ENGINES
        if len(self.servers) < (num_replicas if is_unshared else 1):
            kind = "at least one server per data-parallel replica" if is_unshared else "servers"
            cure = "start servers and list them: engine.servers=[http://host:8000,...]"
            rule = f"engine.name={self.name} needs {kind}"
            yield rule_message(rule, got=f"{len(self.servers)} in engine.servers for {num_replicas}", cure=cure)
        wrong = [url for url in self.servers if not _is_server_url(url)]
        if wrong:
            rule = "engine.servers must be URLs of the form http://host:port"
            yield rule_message(rule, got=wrong, cure="name protocol, host and port, and no path")
        if len({url.rstrip("/").lower() for url in self.servers}) < len(self.servers):
            rule = "engine.servers must name every server once"
            yield rule_message(rule, got=list(self.servers), cure="remove the repeated ones")

    def _transport_problems(self) -> Iterator[str]:
        """Transports that bring no weights to the engine."""
        if self.name not in SERVER_ENGINES:
            allowed, kind = ("auto", "iterator"), "an engine in the trainer's process"
        elif self.name in UNSHARED_SERVER_ENGINES:
            allowed, kind = ("auto",), "the servers of TensorRT-LLM"
        else:
            allowed, kind = ("auto", "shared_memory", "broadcast", "disk"), "servers"
        if self.sync.transport not in allowed:
            rule = f"engine.sync.transport must be one of {', '.join(allowed)} for {kind} (engine.name={self.name})"
            yield rule_message(rule, got=self.sync.transport, cure="leave it at auto")


def _is_server_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.port) and parts.path in ("", "/")
    except ValueError:
        return False
