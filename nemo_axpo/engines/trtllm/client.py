"""One ``trtllm-serve``: sampling, health, weights by handle, memory. Tested against a local server that speaks the same
protocol; not yet run against TensorRT-LLM itself.

The control calls are those of ``tensorrt_llm/serve/openai_server.py`` (2026, 1.3.0 release candidates): ``/update_weights``
with ``{"weights": {device uuid: handles}}`` once per bucket and ``{"weights": null}`` to finish, which also drops the prefix
cache (``llmapi/rlhf_utils.py``, commit 04762f3b); ``/release_memory`` and ``/resume_memory`` with ``{"tags": […]}``. They need
a server on ``AsyncLLM``, and in newer versions a signature of the body (``serve/rl_control_auth.py``, commit 7de08c31).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.client import CONTROL_TIMEOUT_S, UPDATE_TIMEOUT_S, HttpClient, ServedPolicy
from nemo_axpo.engines.fleet.protocol import ServerHealth
from nemo_axpo.engines.trtllm.wire import Dialect, completion, returned_prompt
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.types import Completion, GenerationRequest

_MEMORY_TAGS = ["model", "kv_cache"]
_SIGNATURE_HEADER = "x-trtllm-rl-control-auth"


class TrtllmClient(HttpClient):
    """Implements ``nemo_axpo.engines.fleet.protocol.ServerClient``."""

    def __init__(
        self,
        url: str,
        policy: ServedPolicy,
        *,
        control_key: str | None = None,
        control_timeout_s: float = CONTROL_TIMEOUT_S,
    ) -> None:
        """``control_key``: signs control calls; None leaves them unsigned."""
        super().__init__(url, policy, control_timeout_s=control_timeout_s)
        self._control_key = control_key
        self._dialect: Dialect | None = None
        self._policy_version = -1

    def check(self) -> None:
        """ConfigError unless the server answers, serves the model, and returns prompts and samples as token ids."""
        try:
            version = self._get("/version")["version"]
            self._dialect = self._make_dialect()
        except (EngineError, KeyError, TypeError) as error:
            rule = "engine.servers must name running trtllm-serve processes"
            cure = (
                "start it, and check host and port; for servers of vLLM set engine.name=vllm_server "
                "(NeMo's key: trainer.axpo.trt_llm.enable=False)"
            )
            raise ConfigError(rule_message(rule, got=f"{self.name}: {error!r}", cure=cure)) from error
        for probe in self._policy.probes:
            self._check_probe(probe, version=version)

    def _check_probe(self, probe: GenerationRequest, *, version: str) -> None:
        path, body = self._dialect.request(probe)
        try:
            response = self._connection.call("POST", path, body=_encode(body), timeout_s=UPDATE_TIMEOUT_S)
            self._read(response, probe)
        except (EngineError, ValueError, LookupError, TypeError) as error:
            rule = "trtllm-serve must sample from exactly the ids it is sent, and return what it sampled as ids"
            cure = (
                f"TensorRT-LLM {version} cannot be used for training; use another version, or engine.name=vllm_server "
                "(NeMo's key: trainer.axpo.trt_llm.enable=False)"
            )
            raise ConfigError(rule_message(rule, got=f"{self.name}{path}: {error}", cure=cure)) from error

    def _make_dialect(self) -> Dialect:
        """For the policy's name, or the first served one where any will do."""
        served = self._served_models()
        self._require_model(served)
        return Dialect(self._policy, model=self._policy.name or served[0])

    async def generate(self, request: GenerationRequest, *, timeout_s: float) -> Completion:
        """One completion (see the protocol); its version is that of the last finished update."""
        if self._dialect is None:
            self._dialect = self._make_dialect()
        path, body = self._dialect.request(request)
        return self._read(await self._sample(path, body, timeout_s=timeout_s), request)

    def _read(self, response: Any, request: GenerationRequest) -> Completion:
        answer = self._require_object(response, request)
        self._require_prompt(returned_prompt(answer), request)
        return completion(answer, policy_version=self._policy_version)

    def health(self) -> ServerHealth:
        """The server does not say which weights it has: one that restarts by itself between a push and the next request
        samples its first weights, unnoticed until ``engine/logprob_diff_mean`` shows it. Do not have it restarted.
        """
        self._get("/health")
        return ServerHealth()

    def start_update(self, channel: Mapping[str, Any]) -> None:
        """The first bucket opens the update by itself."""
        self._policy_version = -1

    def update(self, bucket: Mapping[str, Any]) -> None:
        """``bucket``: base64 of pickled ``[(name, handle)]`` by device uuid."""
        self._control("/update_weights", {"weights": dict(bucket)}, timeout_s=UPDATE_TIMEOUT_S)

    def finish_update(self, *, policy_version: int) -> None:
        """The server puts the weights to use and forgets its prefixes."""
        self._control("/update_weights", {"weights": None}, timeout_s=UPDATE_TIMEOUT_S)
        self._policy_version = policy_version

    def release_memory(self) -> None:
        """Weights and cache leave the device."""
        self._control("/release_memory", {"tags": _MEMORY_TAGS})

    def resume_memory(self) -> None:
        """They come back; the weights are to be pushed again."""
        self._control("/resume_memory", {"tags": _MEMORY_TAGS})

    def _control(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> None:
        encoded = _encode(body)
        headers = {_SIGNATURE_HEADER: _signature(self._control_key, encoded)} if self._control_key else None
        self._command(path, encoded, headers=headers, timeout_s=timeout_s)


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _signature(key: str, body: bytes) -> str:
    """HMAC of the exact bytes that are sent."""
    return "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
