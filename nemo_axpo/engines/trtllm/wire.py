"""Requests and responses of ``trtllm-serve``, as its public source has them.

Read, not run: TensorRT-LLM's main branch of 2026 (1.3.0 release candidates), ``tensorrt_llm/serve/openai_server.py``,
``openai_protocol.py`` and ``postprocess_handlers.py`` (commit 01bf1923). What follows from them:

* ``/v1/completions`` takes ``prompt`` as token ids and, with ``detokenize: false``, returns ``choices[0].token_ids``. It has
  no images.
* ``/v1/chat/completions`` takes ``prompt_token_ids``, which replace the rendered chat, and the images of ``messages``.
* Both have a field ``prompt_token_ids`` in the response, the ids that were sampled from. In the versions read it is filled
  for ``disaggregated_params.request_type == "context_only"`` alone, and a chat choice has no ``token_ids``. Qwen3-VL's input
  processor there is among those that turn token ids back into text where images come with them.

So nothing here trusts a version: every response must hold the prompt's ids, the sampled ids and their log-probs, or the
request fails, and the run does at its start (``TrtllmClient.check``).

Unknown fields are errors there, so only fields of that source are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.engines.base import EngineError, PromptMismatchError
from nemo_axpo.engines.fleet.client import ServedPolicy
from nemo_axpo.engines.placeholders import collapse
from nemo_axpo.errors import rule_message
from nemo_axpo.types import Completion, GenerationRequest, SamplingParams

TEXT_PATH, IMAGE_PATH = "/v1/completions", "/v1/chat/completions"
_BAN = -1e9
"""Added to a banned token's logit; JSON has no infinity."""
_FINISH_REASONS = {"stop": "stop", "length": "length"}


class Dialect:
    """Translates for one model."""

    def __init__(self, policy: ServedPolicy, *, model: str) -> None:
        """``model``: the name under which the server serves it."""
        self._model, self._data_urls, self._image_token_id = model, policy.data_urls, policy.image_token_id
        self._stop_token_ids = sorted(policy.stop_token_ids)
        self._logit_bias = {str(token): _BAN for token in sorted(policy.banned_token_ids)}

    def request(self, request: GenerationRequest) -> tuple[str, dict[str, Any]]:
        """Path and body. Images go in order, each as one placeholder in the ids.

        ValueError for a presence penalty: TensorRT-LLM would penalise the tokens of the prompt too.
        """
        if request.sampling.presence_penalty:
            rule = "presence_penalty must be 0 for trtllm: its servers penalise the tokens of the prompt too"
            cure = "set it to 0, or use engine.name=vllm_server"
            raise ValueError(rule_message(rule, got=request.sampling.presence_penalty, cure=cure))
        body = {"model": self._model, "seed": request.seed, **self._sampling(request.sampling)}
        if not request.prompt.image_ids:
            text = {"prompt": list(request.prompt.token_ids), "max_tokens": request.sampling.max_new_tokens}
            return TEXT_PATH, body | text | {"detokenize": False, "logprobs": 1}
        content = [
            {"type": "image_url", "image_url": {"url": self._data_urls.url(image_id)}}
            for image_id in request.prompt.image_ids
        ]
        return IMAGE_PATH, body | {
            "messages": [{"role": "user", "content": content}],
            "prompt_token_ids": collapse(request.prompt.token_ids, image_token_id=self._image_token_id),
            "max_completion_tokens": request.sampling.max_new_tokens,
            "logprobs": True,
        }

    def _sampling(self, sampling: SamplingParams) -> dict[str, Any]:
        return {
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "logit_bias": self._logit_bias,
            # Its own end-of-sequence id would be left out of the completion; stop tokens are kept on demand.
            "ignore_eos": True,
            "stop_token_ids": self._stop_token_ids,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "add_special_tokens": False,
        }


def returned_prompt(response: Mapping[str, Any]) -> list[int] | None:
    """The ids that the server says it has sampled from; None where it does not say."""
    ids = response.get("prompt_token_ids")
    return ids[0] if ids and isinstance(ids[0], list) else ids


def completion(response: Mapping[str, Any], *, policy_version: int) -> Completion:
    """The sampled tokens. PromptMismatchError where a response has no ids or log-probs of them: no retry would add them."""
    choice = response["choices"][0]
    token_ids, logprobs = choice.get("token_ids"), _logprobs(choice)
    if token_ids is None or logprobs is None:
        rule = "a choice must hold token_ids and their logprobs"
        cure = "text cannot be turned back into the ids that were sampled: use a version whose responses have both"
        raise PromptMismatchError(
            rule_message(rule, got=sorted(k for k, v in choice.items() if v is not None), cure=cure)
        )
    if len(token_ids) != len(logprobs):
        raise EngineError(f"trtllm-serve returned {len(token_ids)} token ids and {len(logprobs)} log-probs")
    reason = _FINISH_REASONS.get(choice.get("finish_reason"), "aborted")
    return Completion(tuple(token_ids), tuple(logprobs), reason, policy_version)


def _logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """Of the sampled tokens, from either form: completions ``token_logprobs``, chat ``content[].logprob``."""
    found = choice.get("logprobs") or {}
    if found.get("token_logprobs") is not None:
        return found["token_logprobs"]
    return [entry["logprob"] for entry in found["content"]] if found.get("content") is not None else None
