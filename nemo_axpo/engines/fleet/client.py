"""What the clients of HTTP generation servers share: what they know of the policy, and how calls fail."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Qwen3VLConfig

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.engines.fleet.http import HttpConnection
from nemo_axpo.engines.fleet.probes import start_probes
from nemo_axpo.engines.placeholders import require_same_prompt
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.types import GenerationRequest

CONTROL_TIMEOUT_S = 30.0
UPDATE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ServedPolicy:
    """What the servers of a fleet serve, and how they are asked."""

    data_urls: DataUrls
    image_token_id: int
    stop_token_ids: Collection[int]
    banned_token_ids: Collection[int]
    probes: Sequence[GenerationRequest] = ()
    """Requests, with and without images, on which a client checks its server."""
    name: str | None = None
    """Under which the servers must serve it; None: any."""


def served_policy(
    hf_config: Qwen3VLConfig,
    *,
    image_store: Any,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int],
    name: str | None = None,
) -> ServedPolicy:
    """For all clients of a fleet: pictures are encoded once."""
    return ServedPolicy(
        DataUrls(image_store.model_image),
        hf_config.image_token_id,
        stop_token_ids,
        banned_token_ids,
        start_probes(hf_config, image_store=image_store),
        name,
    )


class HttpClient:
    """Base of the clients of ``nemo_axpo.engines.fleet.protocol.ServerClient``."""

    def __init__(self, url: str, policy: ServedPolicy, *, control_timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        self._connection = HttpConnection(url, control_timeout_s=control_timeout_s)
        self._policy = policy

    @property
    def name(self) -> str:
        """URL."""
        return self._connection.url

    async def close(self) -> None:
        """Closes the connections; the server goes on running."""
        await self._connection.close()

    def _get(self, path: str) -> Any:
        return self._connection.call("GET", path)

    def _command(
        self, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> Any:
        """A control call. EngineError where it is refused: it is nobody's request."""
        try:
            return self._connection.call("POST", path, body=body, headers=headers, timeout_s=timeout_s)
        except ValueError as error:
            raise EngineError(str(error)) from error

    async def _sample(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The answer to a request. EngineError where it is refused: bad ones are not sent, so it failed on this server."""
        try:
            return await self._connection.post(path, body, timeout_s=timeout_s)
        except ValueError as error:
            raise EngineError(str(error)) from error

    def _require_object(self, response: Any, request: GenerationRequest) -> Mapping[str, Any]:
        if not isinstance(response, Mapping):
            raise EngineError(f"{self.name} answered {request.request_id!r} with no JSON object")
        return response

    def _require_prompt(self, returned: Any, request: GenerationRequest) -> None:
        """PromptMismatchError unless the server sampled from the ids that it was sent."""
        require_same_prompt(
            request.prompt.token_ids,
            returned,
            request_id=request.request_id,
            image_token_id=self._policy.image_token_id,
        )

    def _served_models(self) -> list[str]:
        return [card["id"] for card in self._get("/v1/models")["data"]]

    def _require_model(self, served: Sequence[str]) -> None:
        """ConfigError unless the policy's name is among the served ones."""
        wanted = self._policy.name
        if wanted is not None and wanted not in served:
            rule = "a server must serve the model of engine.served_model"
            cure = "correct the name, or start the server with the policy's checkpoint"
            raise ConfigError(rule_message(rule, got=f"{served} on {self.name} for {wanted!r}", cure=cure))
