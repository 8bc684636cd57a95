"""One vLLM server: sampling, health, weights in buckets, memory. Written for and run with vLLM 0.32 on a CPU.

A weight update goes through the workers' extension (``engines/vllm/worker_extension.py``), which the server is started
with. From its start to its end the server is paused, so that nothing is sampled from half an update, not even when the
trainer dies on the way; a server that is asked for its version meanwhile, or was restarted, names none that a trainer gave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.client import CONTROL_TIMEOUT_S, UPDATE_TIMEOUT_S, HttpClient, ServedPolicy
from nemo_axpo.engines.fleet.protocol import ServerHealth
from nemo_axpo.engines.vllm_server.wire import PATH, Dialect, completion, read_version
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.types import Completion, GenerationRequest

_UPDATING = "updating"
"""What the server calls its weights during an update."""


class VllmClient(HttpClient):
    """Implements ``nemo_axpo.engines.fleet.protocol.ServerClient``."""

    def __init__(self, url: str, policy: ServedPolicy, *, control_timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        super().__init__(url, policy, control_timeout_s=control_timeout_s)
        self._dialect = Dialect(policy)
        self.num_workers = 1
        """Processes of the server that hold weights."""

    def check(self) -> None:
        """ConfigError unless the server answers, takes weights, serves the model and samples from the ids it is sent."""
        try:
            served = self._served_models()
            self._get("/weight_info")
            self.num_workers = self._get("/get_world_size?include_dp=false")["world_size"]
            num_all = self._get("/get_world_size?include_dp=true")["world_size"]
            for probe in self._policy.probes:
                body = json.dumps(self._dialect.body(probe)).encode()
                self._read(self._connection.call("POST", PATH, body=body, timeout_s=UPDATE_TIMEOUT_S), probe)
        except (EngineError, ValueError, LookupError, TypeError) as error:
            rule = "engine.servers must name vLLM servers that take token ids and weights"
            cure = (
                "start them with python -m nemo_axpo.engines.vllm_server.launch (docs/engines.md), and check the URL; for "
                "servers of TensorRT-LLM set engine.name=trtllm (NeMo's key: trainer.axpo.trt_llm.enable=True)"
            )
            raise ConfigError(rule_message(rule, got=f"{self.name}: {error}", cure=cure)) from error
        self._require_model(served)
        if num_all != self.num_workers:
            rule = "a vLLM server must hold the model once: every data-parallel copy is a server of its own"
            got = f"{num_all // self.num_workers} copies on {self.name}"
            raise ConfigError(
                rule_message(rule, got=got, cure="start a server for each and list all in engine.servers")
            )

    async def generate(self, request: GenerationRequest, *, timeout_s: float) -> Completion:
        """One completion (see the protocol); its version is the one the server says it sampled with."""
        return self._read(await self._sample(PATH, self._dialect.body(request), timeout_s=timeout_s), request)

    def _read(self, response: Any, request: GenerationRequest) -> Completion:
        answer = self._require_object(response, request)
        self._require_prompt(answer.get("prompt_token_ids"), request)
        return completion(answer)

    def health(self) -> ServerHealth:
        """Whether vLLM's engine lives, and which weights it holds."""
        self._get("/health")
        return ServerHealth(read_version(self._get("/weight_info")["weight_version"]))

    def start_update(self, channel: Mapping[str, Any]) -> None:
        """Pauses the server; what still runs on it is aborted."""
        self._post("/pause?mode=abort")
        self._post("/update_weight_version", {"new_version": _UPDATING})
        self._on_workers("policy_start", dict(channel))

    def update(self, bucket: Mapping[str, Any]) -> None:
        """All workers take the bucket at once."""
        self._on_workers("policy_receive", dict(bucket))

    def finish_update(self, *, policy_version: int) -> None:
        """Drops what was encoded and cached with the old weights, in this order, and lets the server sample again."""
        self._on_workers("policy_finish", policy_version)
        self._post("/reset_encoder_cache")
        if not self._post("/reset_prefix_cache")["success"]:
            raise EngineError(f"{self.name} did not drop its cached prefixes: a request still holds some")
        self._post("/update_weight_version", {"new_version": str(policy_version)})
        self._post("/resume")

    def release_memory(self) -> None:
        """Weights and cache leave the GPU; needs a server started with ``--enable-sleep-mode``. Not yet run on a GPU."""
        self._post("/update_weight_version", {"new_version": _UPDATING})
        self._post("/sleep?level=2")

    def resume_memory(self) -> None:
        """They come back; the weights are to be pushed again."""
        self._post("/wake_up")

    def _on_workers(self, method: str, argument: Any) -> None:
        self._post("/collective_rpc", {"method": method, "args": [argument]})

    def _post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._command(path, json.dumps(body).encode() if body is not None else b"", timeout_s=UPDATE_TIMEOUT_S)
