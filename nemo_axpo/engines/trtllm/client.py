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
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.http import HttpConnection
from nemo_axpo.engines.fleet.protocol import ServerHealth
from nemo_axpo.engines.placeholders import require_same_prompt
from nemo_axpo.engines.trtllm.wire import Dialect, completion, returned_prompt
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.types import Completion, GenerationRequest

_CONTROL_TIMEOUT_S = 30.0
_UPDATE_TIMEOUT_S = 600.0
_MEMORY_TAGS = ["model", "kv_cache"]
_SIGNATURE_HEADER = "x-trtllm-rl-control-auth"


class TrtllmClient:
    """Implements ``nemo_axpo.engines.fleet.protocol.ServerClient``."""

    def __init__(
        self,
        url: str,
        *,
        data_urls: DataUrls,
        image_token_id: int,
        stop_token_ids: Collection[int],
        banned_token_ids: Collection[int],
        probes: Sequence[GenerationRequest],
        model: str | None = None,
        control_key: str | None = None,
        control_timeout_s: float = _CONTROL_TIMEOUT_S,
    ) -> None:
        """``probes``: requests, with and without images, that ``check`` sends. ``model``: the name the server must serve;
        None takes its first. ``control_key``: signs control calls; None leaves them unsigned.
        """
        self._connection = HttpConnection(url, control_timeout_s=control_timeout_s)
        self._image_token_id = image_token_id
        self._ids = {"stop_token_ids": stop_token_ids, "banned_token_ids": banned_token_ids}
        self._data_urls, self._probes, self._model = data_urls, probes, model
        self._control_key = control_key
        self._dialect: Dialect | None = None
        self._policy_version = -1

    @property
    def name(self) -> str:
        """URL."""
        return self._connection.url

    def check(self) -> None:
        """ConfigError unless the server answers, serves the model, and returns prompts and samples as token ids."""
        try:
            version = self._get("/version")["version"]
            self._dialect = self._make_dialect()
        except (EngineError, KeyError, TypeError) as error:
            rule = "engine.servers must name running trtllm-serve processes"
            cure = "start it, and check host and port"
            raise ConfigError(rule_message(rule, got=f"{self.name}: {error!r}", cure=cure)) from error
        for probe in self._probes:
            self._check_probe(probe, version=version)

    def _check_probe(self, probe: GenerationRequest, *, version: str) -> None:
        path, body = self._dialect.request(probe)
        try:
            response = self._connection.call("POST", path, body=_encode(body), timeout_s=_UPDATE_TIMEOUT_S)
            self._read(response, probe)
        except (EngineError, ValueError, LookupError, TypeError) as error:
            rule = "trtllm-serve must sample from exactly the ids it is sent, and return what it sampled as ids"
            cure = (
                f"TensorRT-LLM {version} cannot be used for training; use another version, or engine.name=vllm_server"
            )
            raise ConfigError(rule_message(rule, got=f"{self.name}{path}: {error}", cure=cure)) from error

    def _make_dialect(self) -> Dialect:
        served = [card["id"] for card in self._get("/v1/models")["data"]]
        if self._model is not None and self._model not in served:
            rule = "a server must serve the model of engine.served_model"
            cure = "correct the name, or start the server with the policy's checkpoint"
            raise ConfigError(rule_message(rule, got=f"{served} on {self.name} for {self._model!r}", cure=cure))
        return Dialect(
            model=self._model or served[0], data_urls=self._data_urls, image_token_id=self._image_token_id, **self._ids
        )

    async def generate(self, request: GenerationRequest, *, timeout_s: float) -> Completion:
        """One completion (see the protocol); its version is that of the last finished update."""
        if self._dialect is None:
            self._dialect = self._make_dialect()
        path, body = self._dialect.request(request)
        try:
            response = await self._connection.post(path, body, timeout_s=timeout_s)
        except ValueError as error:  # the server answers 400 to whatever went wrong in it; bad requests are not sent
            raise EngineError(str(error)) from error
        return self._read(response, request)

    def _read(self, response: Any, request: GenerationRequest) -> Completion:
        if not isinstance(response, Mapping):
            raise EngineError(f"{self.name} answered {request.request_id!r} with no JSON object")
        require_same_prompt(
            request.prompt.token_ids,
            returned_prompt(response),
            request_id=request.request_id,
            image_token_id=self._image_token_id,
        )
        return completion(response, policy_version=self._policy_version)

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
        self._control("/update_weights", {"weights": dict(bucket)}, timeout_s=_UPDATE_TIMEOUT_S)

    def finish_update(self, *, policy_version: int) -> None:
        """The server puts the weights to use and forgets its prefixes."""
        self._control("/update_weights", {"weights": None}, timeout_s=_UPDATE_TIMEOUT_S)
        self._policy_version = policy_version

    def release_memory(self) -> None:
        """Weights and cache leave the device."""
        self._control("/release_memory", {"tags": _MEMORY_TAGS})

    def resume_memory(self) -> None:
        """They come back; the weights are to be pushed again."""
        self._control("/resume_memory", {"tags": _MEMORY_TAGS})

    async def close(self) -> None:
        """Closes the connections; the server goes on running."""
        await self._connection.close()

    def _get(self, path: str) -> Any:
        return self._connection.call("GET", path)

    def _control(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> None:
        encoded = _encode(body)
        headers = {_SIGNATURE_HEADER: _signature(self._control_key, encoded)} if self._control_key else None
        try:
            self._connection.call("POST", path, body=encoded, headers=headers, timeout_s=timeout_s)
        except ValueError as error:  # a control call that is refused is nobody's request
            raise EngineError(str(error)) from error


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _signature(key: str, body: bytes) -> str:
    """HMAC of the exact bytes that are sent."""
    return "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
