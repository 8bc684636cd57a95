"""Bytes a second from the actor to a running engine, by transport, against a plain copy of the same tensors in memory.

    OMP_NUM_THREADS=1 python benchmarks/weight_sync.py --output benchmarks/results/weight_sync.json

The actor (megatron, random weights in the tiny model's shape made wider) pushes to an embedded engine that runs in another
process of this machine: tensors are gathered under their Hugging Face names, brought over in buckets, and loaded by the engine.
After every push the engine samples, and the trainer scores what it sampled. ``iterator`` is the engine in the actor's own
process. One thread a process; best and median of the repeats, rounds of all transports one after another.

``proof`` is what the proof after an update costs in a training run of the quickstart's model (embedded engine).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from environment import argument_parser, write_result
from timing import timed
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from nemo_axpo import assembly
from nemo_axpo.canaries.proof import SyncProof
from nemo_axpo.config.load import load_config
from nemo_axpo.config.schema import Config
from nemo_axpo.data.vocabulary import SpecialTokens
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint, tiny_config, tiny_image_processor
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens, SamplingParams, TrainingSample
from nemo_axpo.weight_sync.build import build_pusher
from nemo_axpo.weight_sync.receiver import WeightReceiver
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "head_dim": 64,
}
PROMPT = tuple(range(40, 72))
NUM_TOKENS = 4
TOLERANCE = 1e-4
TRANSPORTS = ("shared_memory", "broadcast", "disk")
EngineOptions = dict[str, Any]


class EngineProcess:
    """An embedded engine in a process of its own, and the client by which weights are pushed to it."""

    def __init__(self, name: str, options: EngineOptions) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_engine, args=(theirs, options), daemon=True)
        self._process.start()

    def start_update(self, channel: dict[str, Any]) -> None:
        self._call("start", channel)

    def update(self, bucket: dict[str, Any]) -> None:
        self._call("bucket", bucket)

    def finish_update(self, *, policy_version: int) -> None:
        self._call("finish", policy_version)

    def sample(self, seed: int) -> Completion:
        return self._call("sample", seed)

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=30)

    def _call(self, method: str, argument: Any) -> Any:
        self._connection.send((method, argument))
        return self._connection.recv()


def run_engine(connection: Connection, options: EngineOptions) -> None:
    """What the other process does: sample, and load what is pushed."""
    torch.set_num_threads(1)
    engine = HfEngine(**options)
    receivers = {transport: WeightReceiver() for transport in TRANSPORTS}

    def stream(receiver: WeightReceiver) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of one update, as the engine asks for them."""
        while True:
            method, argument = connection.recv()
            if method == "finish":
                receiver.finish(policy_version=argument)
                return
            yield from receiver.receive(argument, copy=False)
            connection.send(None)

    with contextlib.suppress(EOFError):
        while True:
            method, argument = connection.recv()
            if method == "start":
                receiver = receivers[argument["transport"]]
                receiver.start(argument)
                connection.send(None)
                engine.load_weights(stream(receiver), policy_version=engine.policy_version + 1)
                connection.send(None)
            else:
                connection.send(asyncio.run(engine.generate(_request(argument))))
    for receiver in receivers.values():
        receiver.close()


def _request(seed: int) -> GenerationRequest:
    return GenerationRequest("sample", RenderedTokens(PROMPT), SamplingParams(NUM_TOKENS), seed)


def save_checkpoint(path: Path) -> Path:
    """The tiny model, wider and deeper, with random weights."""
    tokenizer = build_tokenizer()
    config = tiny_config(tokenizer, vocab_size=VOCAB_SIZE)
    text = {**config.text_config.to_dict(), **SIZES, "num_key_value_heads": 4}
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    text.pop("rope_parameters", None)
    vision = {**config.vision_config.to_dict(), "out_hidden_size": SIZES["hidden_size"]}
    ids = {name: getattr(config, name) for name in ("image_token_id", "video_token_id", "vision_start_token_id")}
    wide = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(wide).save_pretrained(path)
    tokenizer.save_pretrained(path)
    tiny_image_processor().save_pretrained(path)
    return path


def build_actor(config: Config) -> tuple[Any, Any]:
    """The workbench and the actor, without a reference policy."""
    bench = assembly.build_workbench(config, checkpoint=config.model.path)
    optimizer = assembly.policy_optimizer(config)
    return bench, assembly.build_actor(config, bench=bench, optimizer=optimizer, keep_reference=False)


class Measurement:
    """One actor and all ways to an engine."""

    def __init__(self, config: Config, *, directory: Path, bucket_mib: int) -> None:
        bench, self._actor = build_actor(config)
        special = SpecialTokens.from_tokenizer(bench.renderer.tokenizer)
        options = {
            "hf_config": bench.hf_config,
            "image_store": None,
            "stop_token_ids": (special.im_end,),
            "banned_token_ids": bench.banned_token_ids,
            "max_num_seqs": 2,
            "max_model_len": 64,
        }
        self._server = EngineProcess("http://localhost:1", options)
        self._engine = HfEngine(**options)
        tensors = [tensor for _, tensor in self._actor.hf_tensors()]
        self.num_bytes, self.num_tensors = sum(tensor.nbytes for tensor in tensors), len(tensors)
        self._copies = [torch.empty_like(tensor) for tensor in tensors]
        settings = {
            "bucket_mib": bucket_mib,
            "directory": str(directory / "weights"),
            "address": None,
            "timeout_s": 60.0,
        }
        self._pushers = {
            name: build_pusher(SimpleNamespace(transport=name, **settings), urls=[self._server.name], device="cpu")
            for name in TRANSPORTS
        }
        self.parity, self._version = 0.0, 0

    def ways(self) -> dict[str, Callable[[], None]]:
        """What is measured, by name."""
        pushes = {name: lambda name=name: self._push(name) for name in TRANSPORTS}
        return {"memory_copy": self._copy, "gather": self._gather, "iterator": self._load_in_process, **pushes}

    def check(self) -> None:
        """The engine in the other process samples; the trainer scores it."""
        completion = self._server.sample(self._version)
        length = len(completion.token_ids)
        nothing, mask = (0.0,) * len(PROMPT), (False,) * len(PROMPT) + (True,) * length
        row = TrainingSample(
            "r", "r", PROMPT + completion.token_ids, mask, nothing + (0.0,) * length, nothing + completion.logprobs
        )
        (scores,) = self._actor.logprobs([row])
        ours = scores[len(PROMPT) :]
        self.parity = max(self.parity, (ours - torch.tensor(completion.logprobs)).abs().max().item())
        assert self.parity < TOLERANCE, f"engine and trainer differ by {self.parity}"

    @torch.no_grad()
    def change(self) -> None:
        """Other weights before every push, so that the check can tell."""
        for parameter in self._actor._model.parameters():
            parameter.mul_(1.01 if self._version % 2 else 0.99)
        self._version += 1

    def close(self) -> None:
        """Ends the other process."""
        self._server.close()
        for pusher in self._pushers.values():
            pusher.close()

    @torch.no_grad()
    def _copy(self) -> None:
        for copy, (_, tensor) in zip(self._copies, self._actor.hf_tensors(), strict=True):
            copy.copy_(tensor)

    def _gather(self) -> None:
        for _ in self._actor.hf_tensors():
            pass

    def _load_in_process(self) -> None:
        self._engine.load_weights(self._actor.hf_tensors(), policy_version=self._version)

    def _push(self, name: str) -> None:
        pusher = self._pushers[name]
        failures = pusher.push(self._actor.hf_tensors(), servers=[self._server], policy_version=self._version)
        assert not failures, failures


def measure(config: Config, *, directory: Path, bucket_mib: int, repeats: int) -> dict[str, Any]:
    """Seconds and bytes a second of every way."""
    measurement = Measurement(config, directory=directory, bucket_mib=bucket_mib)
    times: dict[str, list[float]] = {name: [] for name in measurement.ways()}
    for _ in range(repeats + 1):
        for name, way in measurement.ways().items():
            measurement.change()
            times[name].append(timed(way).wall_s)
            if name in TRANSPORTS:
                measurement.check()
    measurement.close()
    results = {name: summary(values[1:], num_bytes=measurement.num_bytes) for name, values in times.items()}
    copy = results["memory_copy"]["best_s"]
    for result in results.values():
        result["share_of_memory_copy"] = copy / result["best_s"]
    facts = {"num_bytes": measurement.num_bytes, "num_tensors": measurement.num_tensors, "bucket_mib": bucket_mib}
    return {**facts, "max_logprob_difference": measurement.parity, "ways": results}


def summary(seconds: list[float], *, num_bytes: int) -> dict[str, float]:
    """Best and median; the first round, which allocates, is left out."""
    best = min(seconds)
    return {"best_s": best, "median_s": statistics.median(seconds), "bytes_per_s": num_bytes / best}


def measure_proof(directory: Path, *, repeats: int) -> dict[str, float]:
    """Push and proof on the quickstart's model."""
    path = save_tiny_checkpoint(directory / "tiny", tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0)
    config = load_config([f"model.path={path}", "loss.kl_coef=0"])
    bench, actor = build_actor(config)
    engine = assembly.build_engine(config, bench=bench)
    proof = SyncProof(config, bench=bench, actor=actor, engine=engine, replicas=OneProcess())
    pushes, proofs, difference = [], [], 0.0
    for number in range(repeats + 1):
        actor.policy_version = number
        pushes.append(timed(partial(engine.load_weights, actor.hf_tensors(), policy_version=number)).wall_s)
        proving = timed(lambda: asyncio.run(proof()))
        proofs.append(proving.wall_s)
        difference = max(difference, proving.result)
        bench.images.retain(())
    return {
        "push_best_s": min(pushes[1:]),
        "proof_best_s": min(proofs[1:]),
        "proof_median_s": statistics.median(proofs[1:]),
        "max_difference": difference,
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bucket-mib", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = load_config([f"model.path={save_checkpoint(directory / 'model')}", "loss.kl_coef=0"])
        results = measure(config, directory=directory, bucket_mib=arguments.bucket_mib, repeats=arguments.repeats)
        results["proof"] = measure_proof(directory, repeats=3 * arguments.repeats)
    print(json.dumps(results, indent=1))
    write_result(arguments.output, {"results": results})


if __name__ == "__main__":
    main()
