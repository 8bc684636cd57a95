"""Any OpenAI-compatible chat endpoint as an engine, so that a teacher behind it uses our tools, limits and verifiers.

The rendered row is read back into messages (text and pictures), the reply is written as the student would have sampled it
(thinking, ``</think>``, text or tool call, ``<|im_end|>``) and tokenised once. Where the endpoint returns token ids (vLLM:
``distill.endpoint.body={return_token_ids: true}``), those are taken instead. There are no log-probs: such rollouts train
a student, not a policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.vocabulary import TOKEN_TEXT
from nemo_axpo.engines.base import EngineError
from nemo_axpo.engines.data_urls import DataUrls
from nemo_axpo.remote.json_client import JsonClient, RemoteRefusedError, RemoteUnavailableError
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens

_THINK, _THINK_END, _END = TOKEN_TEXT["think"], TOKEN_TEXT["think_end"], TOKEN_TEXT["im_end"]
_STRUCTURE = tuple(text for text in TOKEN_TEXT.values() if text.startswith("<|"))
"""Tokens that mark turns and images; a reply may not spell them."""
_MAX_SEED = 2**31 - 1


class ChatEndpoint:
    """An :class:`nemo_axpo.engines.base.Engine` without weights of ours."""

    policy_version = 0

    def __init__(
        self,
        client: JsonClient,
        *,
        model: str,
        renderer: ChatRenderer,
        image_store: ImageStore,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        """``body``: further fields of every request; null removes one that is sent otherwise (``seed``)."""
        self._client, self._model, self._body = client, model, dict(body or {})
        self._renderer, self._urls = renderer, DataUrls(image_store.image)

    async def generate(self, request: GenerationRequest) -> Completion:
        """One reply as a completion. EngineError where there is none, or none that can be used."""
        sampling = request.sampling
        body = {
            "model": self._model,
            "messages": self.messages(request.prompt),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed & _MAX_SEED,
        } | self._body
        try:
            answer = await self._client.post(
                "/chat/completions", {key: value for key, value in body.items() if value is not None}
            )
        except (RemoteUnavailableError, RemoteRefusedError) as error:
            raise EngineError(f"the teacher: {error}") from error
        token_ids, finish_reason = self._completion(answer)
        if len(token_ids) > sampling.max_new_tokens:
            token_ids, finish_reason = token_ids[: sampling.max_new_tokens], "length"
        return Completion(token_ids, (0.0,) * len(token_ids), finish_reason, self.policy_version)

    def load_weights(self, named_tensors: Iterable[tuple[str, object]], *, policy_version: int) -> None:
        """The endpoint has its own."""

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def messages(self, prompt: RenderedTokens) -> list[dict[str, Any]]:
        """Chat messages of a rendered row that ends with the opened model turn, pictures as data URLs."""
        special, pictures = self._renderer.special, iter(prompt.image_ids)
        turns = list(_split(prompt.token_ids, special.im_start))
        messages = [self._message(turn, pictures) for turn in turns[:-1]]
        opened = self._renderer.decode(turns[-1])
        if opened.partition("\n")[2].strip() not in ("", _THINK):
            raise EngineError(f"an endpoint cannot continue a model turn, and this one has begun: {opened[:60]!r}")
        return messages

    def _message(self, turn: Sequence[int], pictures: Iterator[str]) -> dict[str, Any]:
        special = self._renderer.special
        role, _, _ = self._renderer.decode(turn).partition("\n")
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(_split(turn, special.vision_start, keeps_first=True)):
            text = piece
            if number:
                url = {"url": self._urls.url(next(pictures))}
                parts.append({"type": "image_url", "image_url": url})
                text = piece[list(piece).index(special.vision_end) + 1 :]
            plain = (
                self._renderer.decode(text).rpartition(_END)[0]
                if special.im_end in text
                else self._renderer.decode(text)
            )
            plain = plain if number else plain.partition("\n")[2]
            if plain:
                parts.append({"type": "text", "text": plain})
        if len(parts) == 1 and parts[0]["type"] == "text":
            return {"role": role, "content": parts[0]["text"]}
        return {"role": role, "content": parts}

    def _completion(self, answer: Any) -> tuple[tuple[int, ...], str]:
        """Token ids of a reply, and why it ended."""
        try:
            choice = answer["choices"][0]
            message = choice["message"]
        except (KeyError, IndexError, TypeError):
            raise EngineError(f"the teacher's reply must hold choices[0].message; got {str(answer)[:200]}") from None
        is_cut = choice.get("finish_reason") == "length"
        if isinstance(choice.get("token_ids"), list) and choice["token_ids"]:
            token_ids = tuple(choice["token_ids"])
        else:
            text = reply_text(message)
            spelled = [token for token in _STRUCTURE if token in text]
            if spelled:
                raise EngineError(f"the teacher's reply must not spell control tokens; got {', '.join(spelled)}")
            token_ids = self._renderer.encode(text)
        if is_cut:
            return token_ids, "length"
        is_ended = token_ids and token_ids[-1] in self._renderer.stop_token_ids
        return (token_ids if is_ended else (*token_ids, self._renderer.special.im_end)), "stop"


def reply_text(message: Mapping[str, Any]) -> str:
    """What a student would sample after the opened ``<think>``: thinking, its end, text, the first tool call.

    Thinking comes apart (``reasoning_content``, ``reasoning``) or inside the content; tool calls apart or as text.
    """
    content = _text(message.get("content"))
    thinking = _text(message.get("reasoning_content") or message.get("reasoning"))
    if not thinking and _THINK_END in content:
        thinking, _, content = content.partition(_THINK_END)
    thinking = thinking.strip().removeprefix(_THINK).strip()
    calls = message.get("tool_calls") or ()
    call = _call_text(calls[0]) if calls else ""
    spoken = "\n".join(filter(None, (content.strip(), call)))
    return f"{thinking}\n{_THINK_END}\n\n{spoken}"


def _call_text(call: Mapping[str, Any]) -> str:
    """A structured call as Hermes text. EngineError for one without name or arguments."""
    try:
        function = call["function"]
        arguments = function["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        written = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise EngineError(
            f"a tool call of the teacher must hold function.name and JSON arguments; got {error!r}"
        ) from None
    return f"{TOKEN_TEXT['tool_call']}\n{written}\n{TOKEN_TEXT['tool_call_end']}"


def _text(value: Any) -> str:
    """Content that is text, or typed parts of which the text counts."""
    if isinstance(value, list):
        return "".join(part.get("text", "") for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ""


def _split(token_ids: Sequence[int], at: int, *, keeps_first: bool = False) -> Iterator[Sequence[int]]:
    """Pieces between the tokens ``at``; what stands before the first one only with ``keeps_first``."""
    start = 0
    for index, token in enumerate(token_ids):
        if token == at:
            if keeps_first or start:
                yield token_ids[start:index]
            start, keeps_first = index + 1, True
    yield token_ids[start:]
