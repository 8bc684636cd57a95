"""A server that speaks the part of trtllm-serve's HTTP protocol which our client uses. It is NOT TensorRT-LLM.

It samples with the hf engine of this project. What it shows is that client, fleet and this protocol fit together; whether a
version of TensorRT-LLM speaks it and samples the trainer's policy is for ``launcher_scripts/test_trtllm.sh`` to show.

    python trtllm_protocol_server.py --port 0 …     prints the port it listens on

Beyond what the versions that were read do, it fills ``prompt_token_ids`` and a chat choice's ``token_ids``; ``--dialect``
chooses the answers of a version that cannot be used. Which fields a request may have, signatures, partial updates and the
null that finishes them are as in the source named in ``nemo_axpo/engines/trtllm/{wire,client}.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import io
import json
import pickle
import select
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from picture_store import tiny_processor
from PIL import Image
from shared_tensors import LOCAL_UUID
from tiny_engine_model import tiny_config, tiny_model

from nemo_axpo.data.images import ImageStore, load_image_processor
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.engines.trtllm.pusher import Handle
from nemo_axpo.models.qwen3_vl.loading import load_hf_config, read_checkpoint
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens, SamplingParams

DIALECTS = ("complete", "no_prompt_ids", "no_token_ids", "retokenises", "half_size_images")
MODEL = "tiny-qwen3-vl"
_SAMPLING_FIELDS = {
    "model", "seed", "n", "temperature", "top_p", "top_k", "logit_bias", "ignore_eos", "stop_token_ids",
    "include_stop_str_in_output", "skip_special_tokens", "add_special_tokens", "logprobs",
}  # fmt: skip
_FIELDS = {
    "/v1/completions": _SAMPLING_FIELDS | {"prompt", "max_tokens", "detokenize"},
    "/v1/chat/completions": _SAMPLING_FIELDS | {"messages", "prompt_token_ids", "max_tokens", "max_completion_tokens"},
}


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Sampler:
    """hf engines by their stop and banned ids, all with the weights that were pushed last; an event loop of its own."""

    def __init__(self, checkpoint: str | None, *, max_num_seqs: int, max_model_len: int) -> None:
        """``checkpoint``: directory; None: the contract's tiny model."""
        self.config = load_hf_config(checkpoint) if checkpoint else tiny_config()
        self.images = ImageStore(load_image_processor(checkpoint) if checkpoint else tiny_processor())
        self._limits = {"max_num_seqs": max_num_seqs, "max_model_len": max_model_len}
        self._weights = dict(
            read_checkpoint(checkpoint) if checkpoint else tiny_model(self.config, seed=7).state_dict()
        )
        self._staged: dict[str, torch.Tensor] = {}
        self._engines: dict[tuple, HfEngine] = {}
        self._is_asleep = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def submit(self, request: GenerationRequest, *, stop: tuple, banned: tuple) -> Future[Completion]:
        """Starts a request; cancelling the future aborts it."""
        return asyncio.run_coroutine_threadsafe(self._generate(request, stop=stop, banned=banned), self._loop)

    async def _generate(self, request: GenerationRequest, *, stop: tuple, banned: tuple) -> Completion:
        if self._is_asleep:
            raise RuntimeError("the memory is released")
        engine = self._engines.get((stop, banned))
        if engine is None:
            engine = HfEngine(
                self.config, image_store=self.images, stop_token_ids=stop, banned_token_ids=banned, **self._limits
            )
            engine.load_weights(self._weights.items(), policy_version=0)
            self._engines[stop, banned] = engine
        return await engine.generate(request)

    def on_loop(self, function: Any, *arguments: Any) -> None:
        """Runs in the event loop, between two steps of the engines."""

        async def call() -> None:
            function(*arguments)

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def stage(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """A bucket: its tensors are copied before the answer, after which the sender frees them."""
        for name, tensor in named_tensors:
            if name not in self._weights:
                raise KeyError(name)
            self._staged[name] = tensor.clone()

    def finish_update(self) -> None:
        """Engines are made anew, so nothing of the old weights is left."""
        self._weights |= self._staged
        self._staged = {}
        self._engines.clear()

    def set_asleep(self, is_asleep: bool) -> None:
        """Without memory nothing is sampled."""
        self._is_asleep = is_asleep


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: in two, the second one waits for the acknowledgement of the first
    sampler: Sampler
    dialect: str
    control_key: str | None

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        answers = {
            "/health": {},
            "/version": {"version": "0 (local protocol server, not TensorRT-LLM)"},
            "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "tensorrt_llm"}]},
        }
        if self.path in answers:
            self._answer(200, answers[self.path])
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        routes = {
            "/v1/completions": self._complete, "/v1/chat/completions": self._complete,
            "/update_weights": self._update_weights,
            "/release_memory": lambda body: self._memory(body, is_asleep=True),
            "/resume_memory": lambda body: self._memory(body, is_asleep=False),
        }  # fmt: skip
        try:
            if self.path not in routes:
                raise Refused(404, "Not Found")
            if self.path not in _FIELDS:
                self._check_signature(body)
            self._answer(200, routes[self.path](json.loads(body)))
        except Refused as error:
            self._answer(error.status, {"object": "error", "message": error.message, "code": error.status})
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            self._answer(500, {"object": "error", "message": repr(error), "code": 500})

    def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        unknown = set(body) - _FIELDS[self.path]
        if unknown or body["model"] != MODEL or not body["ignore_eos"] or not body["include_stop_str_in_output"]:
            raise Refused(400, f"unknown fields {sorted(unknown)}, model {body['model']!r}")
        prompt = self._prompt(body)
        sampling = SamplingParams(
            body.get("max_completion_tokens", body.get("max_tokens")), body["temperature"], body["top_p"], body["top_k"]
        )
        request = GenerationRequest("r", prompt, sampling, body["seed"])
        stop = tuple(body["stop_token_ids"])
        banned = tuple(int(token) for token, bias in body["logit_bias"].items() if bias < -1e8)
        try:
            completion = self._wait(self.sampler.submit(request, stop=stop, banned=banned))
        except ValueError as error:
            raise Refused(400, str(error)) from error
        return self._response(prompt, completion)

    def _wait(self, future: Future[Completion]) -> Completion:
        """Aborts when the client has gone, as await_disconnected does there."""
        while True:
            try:
                return future.result(timeout=0.05)
            except NotYet:
                if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, 0x2):  # MSG_PEEK
                    future.cancel()
                    raise ConnectionResetError from None

    def _prompt(self, body: Mapping[str, Any]) -> RenderedTokens:
        """Expanded ids and images, as the input processor makes them."""
        if self.path == "/v1/completions":
            return RenderedTokens(tuple(body["prompt"]))
        parts = [part for message in body["messages"] for part in message["content"]]
        image_ids = [self._image(part["image_url"]["url"]) for part in parts]
        prompt = self._expanded(body["prompt_token_ids"], image_ids)
        return replace(prompt, token_ids=prompt.token_ids[1:]) if self.dialect == "retokenises" else prompt

    def _expanded(self, token_ids: Sequence[int], image_ids: Sequence[str]) -> RenderedTokens:
        """As many placeholders for each picture as it has tokens."""
        lengths = iter([self.sampler.images.features(image_id).num_tokens for image_id in image_ids])
        image_token_id = self.sampler.config.image_token_id
        ids = [copy for token in token_ids for copy in [token] * (next(lengths) if token == image_token_id else 1)]
        return RenderedTokens(tuple(ids), tuple(image_ids))

    def _image(self, url: str) -> str:
        image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        if self.dialect == "half_size_images":
            image = image.resize((image.width // 2, image.height // 2))
        return self.sampler.images.add(image)

    def _response(self, prompt: RenderedTokens, completion: Completion) -> dict[str, Any]:
        is_chat = self.path == "/v1/chat/completions"
        if is_chat:
            content = [{"token": "?", "logprob": logprob} for logprob in completion.logprobs]
            choice = {"message": {"role": "assistant", "content": "?"}, "logprobs": {"content": content}}
        else:
            choice = {"text": "", "logprobs": {"token_logprobs": completion.logprobs, "tokens": []}}
        has_ids = not (is_chat and self.dialect == "no_token_ids")
        return {
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": completion.finish_reason,
                    "token_ids": completion.token_ids if has_ids else None,
                    **choice,
                }
            ],
            "prompt_token_ids": None if self.dialect == "no_prompt_ids" else prompt.token_ids,
        }

    def _update_weights(self, body: Mapping[str, Any]) -> dict[str, str]:
        if body["weights"] is None:
            self.sampler.on_loop(self.sampler.finish_update)
        else:
            self.sampler.stage(rebuilt(pickle.loads(base64.b64decode(body["weights"][LOCAL_UUID]))))
        return {"status": "success"}

    def _memory(self, body: Mapping[str, Any], *, is_asleep: bool) -> dict[str, str]:
        if not body.get("tags"):
            raise Refused(422, "tags must not be empty")
        self.sampler.on_loop(self.sampler.set_asleep, is_asleep)
        return {"status": "success"}

    def _check_signature(self, body: bytes) -> None:
        if self.control_key is None:
            return
        expected = "sha256=" + hmac.new(self.control_key.encode(), body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(self.headers.get("x-trtllm-rl-control-auth", ""), expected):
            raise Refused(401, "Invalid RL control request authentication")

    def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


def rebuilt(handles: Iterable[tuple[str, Handle]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors behind the handles of a bucket."""
    for name, (rebuild, arguments) in handles:
        yield name, rebuild(*arguments[:6], "cpu", *arguments[7:])


class Server(ThreadingHTTPServer):
    """As many connections at once as there are requests."""

    request_queue_size = 512
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--checkpoint")
    parser.add_argument("--dialect", choices=DIALECTS, default="complete")
    parser.add_argument("--control-key")
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-model-len", type=int, default=160)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    Handler.sampler = Sampler(
        arguments.checkpoint, max_num_seqs=arguments.max_num_seqs, max_model_len=arguments.max_model_len
    )
    Handler.dialect, Handler.control_key = arguments.dialect, arguments.control_key
    server = Server(("127.0.0.1", arguments.port), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
