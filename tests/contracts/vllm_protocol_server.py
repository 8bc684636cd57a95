"""A server that speaks the part of vLLM's HTTP protocol which our client uses. It is NOT vLLM.

It samples with the hf engine of this project and takes weights with the receiver that runs inside vLLM's workers. What it
shows is that client, fleet and several trainers fit together; vLLM itself is in ``test_vllm_server_engine.py``.

    python vllm_protocol_server.py --port 0 …     prints the port it listens on

``GET /log`` answers what it was asked so far, in order: the last part of each path, the method of calls to the workers, and
the version of ``update_weight_version``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import torch
from trtllm_protocol_server import Handler, Refused, Sampler, Server

from nemo_axpo.engines.vllm_server.wire import PATH
from nemo_axpo.types import GenerationRequest, SamplingParams
from nemo_axpo.weight_sync.receiver import WeightReceiver

MODEL = "contract"


class VersionedSampler(Sampler):
    """Weights come in buckets and have a version; a pause aborts what runs, and later requests wait for its end."""

    def __init__(self, checkpoint: str | None, *, max_num_seqs: int, max_model_len: int) -> None:
        super().__init__(checkpoint, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
        self.version = "default"
        self.may_sample = threading.Event()
        self.may_sample.set()
        self._receiver = WeightReceiver()

    def pause(self) -> None:
        """As ``/pause?mode=abort``."""
        self.may_sample.clear()
        asyncio.run_coroutine_threadsafe(self._abort(), self._loop).result()

    async def _abort(self) -> None:
        for engine in self._engines.values():
            await engine.close()
        self._engines.clear()

    def policy_start(self, channel: Mapping[str, Any]) -> None:
        self._receiver.start(channel)

    def policy_receive(self, message: Mapping[str, Any]) -> None:
        self.stage(self._receiver.receive(message))

    def policy_finish(self, policy_version: int) -> None:
        self._receiver.finish(policy_version=policy_version)
        self.on_loop(self.finish_update)


class VllmHandler(Handler):
    """One request."""

    sampler: VersionedSampler
    dialect = "complete"
    log: list[list[Any]]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        answers = {
            "/health": {},
            "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
            "/get_world_size": {"world_size": 1},
            "/weight_info": {"weight_version": self.sampler.version},
            "/log": self.log,
        }
        if path != "/log":
            self.log.append([path.split("/")[-1]])
        self._answer(200, answers[path]) if path in answers else self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        path = urlsplit(self.path).path
        routes = {
            PATH: self._generate, "/pause": self._pause, "/resume": self._resume, "/collective_rpc": self._on_workers,
            "/update_weight_version": self._set_version, "/reset_encoder_cache": self._reset,
            "/reset_prefix_cache": self._reset,
        }  # fmt: skip
        arguments = {"/collective_rpc": "method", "/update_weight_version": "new_version"}
        self.log.append([path.split("/")[-1], *([body[arguments[path]]] if path in arguments else [])])
        try:
            if path not in routes:
                raise Refused(404, "Not Found")
            self._answer(200, routes[path](body))
        except Refused as error:
            self._answer(error.status, {"error": {"message": error.message}})
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            self._answer(500, {"error": {"message": repr(error)}})

    def _generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.sampler.may_sample.wait()
        asked, image_ids = body["sampling_params"], [self._image(part["url"]) for part in body.get("content_parts", ())]
        prompt = self._expanded(body["token_ids"], image_ids)
        names = ("max_tokens", "temperature", "top_p", "top_k", "presence_penalty")
        request = GenerationRequest("r", prompt, SamplingParams(*(asked[name] for name in names)), asked["seed"])
        stop, banned = tuple(asked["stop_token_ids"]), tuple(int(token) for token in asked["logit_bias"] or ())
        version = self.sampler.version
        try:
            completion = self._wait(self.sampler.submit(request, stop=stop, banned=banned))
        except ValueError as error:
            raise Refused(400, str(error)) from error
        num_tokens, is_aborted = len(completion.token_ids), completion.finish_reason == "aborted"
        choice = {
            "token_ids": completion.token_ids,
            "logprobs": {"content": [{"logprob": logprob} for logprob in completion.logprobs]},
            "finish_reason": "abort" if is_aborted else completion.finish_reason,
            "weight_versions": [{"version": version, "start": 0, "end": num_tokens}],
        }
        return {"choices": [choice], "prompt_token_ids": prompt.token_ids}

    def _pause(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.sampler.pause()
        return {"status": "paused"}

    def _resume(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.sampler.may_sample.set()
        return {"status": "resumed"}

    def _set_version(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.sampler.version = body["new_version"]
        return {"success": True}

    def _on_workers(self, body: Mapping[str, Any]) -> dict[str, Any]:
        methods = (self.sampler.policy_start, self.sampler.policy_receive, self.sampler.policy_finish)
        {method.__name__: method for method in methods}[body["method"]](*body["args"])
        return {"results": [None]}

    def _reset(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Engines are made anew at the end of an update: nothing is cached."""
        return {"success": True}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--checkpoint")
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-model-len", type=int, default=160)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    VllmHandler.sampler = VersionedSampler(
        arguments.checkpoint, max_num_seqs=arguments.max_num_seqs, max_model_len=arguments.max_model_len
    )
    VllmHandler.log = []
    server = Server(("127.0.0.1", arguments.port), VllmHandler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
