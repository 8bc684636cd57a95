"""Requests and responses of vLLM's token-level endpoint, ``POST /inference/v1/generate`` (vLLM 0.32, ``--enable-scale-out``).

The other endpoints will not do: ``/v1/completions`` ignores images without a word, chat completions tokenise anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.fleet.client import ServedPolicy
from nemo_axpo.engines.placeholders import collapse
from nemo_axpo.engines.vllm.sampling import BAN, vllm_seed
from nemo_axpo.errors import rule_message
from nemo_axpo.types import Completion, GenerationRequest

PATH = "/inference/v1/generate"
NO_VERSION = -1
"""Of weights that no trainer has pushed."""


class Dialect:
    """Translates for one model."""

    def __init__(self, policy: ServedPolicy) -> None:
        self._data_urls, self._image_token_id = policy.data_urls, policy.image_token_id
        self._stop_token_ids = sorted(policy.stop_token_ids)
        self._logit_bias = {str(token): BAN for token in sorted(policy.banned_token_ids)}

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """Each image is one placeholder in the ids and a picture beside them, in order."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "token_ids": collapse(request.prompt.token_ids, image_token_id=self._image_token_id),
            "return_token_ids": True,
            "sampling_params": {
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "presence_penalty": sampling.presence_penalty,
                "seed": vllm_seed(request.seed),
                "logprobs": 0,
                "logit_bias": self._logit_bias or None,
                "stop_token_ids": self._stop_token_ids,
                "ignore_eos": True,
                "detokenize": False,
            },
        }
        if request.prompt.image_ids:
            body["content_parts"] = [
                {"type": "image_url", "url": self._data_urls.url(image_id), "uuid": image_id}
                for image_id in request.prompt.image_ids
            ]
        return body


def completion(response: Mapping[str, Any]) -> Completion:
    """EngineError for a response without ids and log-probs. Its version is what the server says it sampled with."""
    try:
        (choice,) = response["choices"]
        token_ids = tuple(choice["token_ids"])
        logprobs = tuple(position["logprob"] for position in choice["logprobs"]["content"])
        if len(token_ids) != len(logprobs):
            raise ValueError(f"{len(token_ids)} ids and {len(logprobs)} log-probs")
        finish_reason = "aborted" if choice["finish_reason"] == "abort" else choice["finish_reason"]
        version = policy_version(choice["weight_versions"])
    except (KeyError, TypeError, ValueError) as error:
        rule = "a choice must hold token_ids, their logprobs, a finish_reason and weight_versions"
        cure = "use vLLM 0.32, started as docs/engines.md says"
        raise EngineError(rule_message(rule, got=repr(error), cure=cure)) from error
    return Completion(token_ids, logprobs, finish_reason, version)


def policy_version(spans: Any) -> int:
    """Of the one version in ``spans``; a completion of several versions has none. Example: ``[{"version": "7", …}]`` → 7."""
    versions = {str(span["version"]) for span in spans or ()}
    return read_version(versions.pop()) if len(versions) == 1 else NO_VERSION


def read_version(text: object) -> int:
    """A version that a trainer gave; ``NO_VERSION`` for the words vLLM itself uses."""
    return int(text) if str(text).isdecimal() else NO_VERSION
