"""Tokens per second of the embedded engine against transformers' ``generate``, on one thread, in one run.

    OMP_NUM_THREADS=1 python benchmarks/sampler.py --output benchmarks/results/sampler.json

Three loads on random weights: uniform text (64 prompts of 64 tokens, 64 new ones), the quickstart's own traffic
(ragged, two turns, images; see ``trace``), and K = 8 continuations of a 1000-token prefix with and without prefix
sharing. Only sampled tokens count. ``generate`` gets each load as left-padded batches, turn by turn, which is how it
must be used.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from environment import argument_parser, write_result
from timing import repeated
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.types import GenerationRequest, RenderedTokens, SamplingParams

VOCAB_SIZE, IMAGE, VIDEO, VISION_START, VISION_END, NEVER = 400, 390, 391, 392, 393, 399
BANNED = (IMAGE, VIDEO, VISION_START, VISION_END, NEVER)


@dataclass(frozen=True)
class Features:
    """Patches of one image and its grid."""

    pixel_values_PD: torch.Tensor
    grid_thw: tuple[int, int, int]


class RandomImages:
    """An image store of random patches; the id names the grid: ``<height>x<width>/<anything>``."""

    def __init__(self, patch_values: int) -> None:
        self._patch_values = patch_values
        self._features: dict[str, Features] = {}

    def features(self, image_id: str) -> Features:
        """The same patches for the same id."""
        if image_id not in self._features:
            height, width = map(int, image_id.split("/")[0].split("x"))
            self._features[image_id] = Features(torch.randn(height * width, self._patch_values), (1, height, width))
        return self._features[image_id]


@dataclass(frozen=True)
class Turn:
    """One model turn of the trace: what is new before it, and how many tokens are sampled."""

    delta: RenderedTokens
    num_new: int


def build_config(*, hidden: int, layers: int, mlp: int, head_dim: int, mrope: list[int]) -> Qwen3VLConfig:
    """A small Qwen3-VL with the quickstart's vision tower."""
    text = {
        "vocab_size": VOCAB_SIZE, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim, "max_position_embeddings": 4096,
        "rope_theta": 10000.0, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "default", "mrope_section": mrope, "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 2, "patch_size": 8,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": hidden,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END, tie_word_embeddings=True,
    )  # fmt: skip


class Bench:
    """One model, served by the engine and by ``generate``."""

    def __init__(self, config: Qwen3VLConfig) -> None:
        torch.manual_seed(0)
        self.config = config
        self.model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
        self.images = RandomImages(3 * 2 * config.vision_config.patch_size**2)

    def engine(self, *, max_num_seqs: int, max_model_len: int, share_prefixes: bool = True) -> HfEngine:
        """A fresh engine with the model's weights."""
        engine = HfEngine(
            self.config, image_store=self.images, stop_token_ids=[NEVER], banned_token_ids=BANNED,
            max_num_seqs=max_num_seqs, max_model_len=max_model_len, share_prefixes=share_prefixes,
        )  # fmt: skip
        engine.load_weights(self.model.state_dict().items(), policy_version=0)
        return engine

    def serve(self, engine: HfEngine, rollouts: list[list[Turn]], *, reload: bool = True) -> int:
        """Runs every rollout to its end at once; returns the sampled tokens. ``reload`` drops what is cached first."""
        if reload:
            engine.load_weights(self.model.state_dict().items(), policy_version=engine.policy_version + 1)

        async def roll(number: int, turns: list[Turn]) -> int:
            row, sampled = RenderedTokens(()), 0
            for turn in turns:
                row = row + turn.delta
                request = GenerationRequest(f"{number}", row, SamplingParams(turn.num_new), seed=number)
                completion = await engine.generate(request)
                row = row + RenderedTokens(completion.token_ids)
                sampled += len(completion.token_ids)
            return sampled

        async def all_rollouts() -> int:
            return sum(await asyncio.gather(*(roll(number, turns) for number, turns in enumerate(rollouts))))

        return asyncio.run(all_rollouts())

    @torch.no_grad()
    def generate(self, rollouts: list[list[Turn]], *, batch_size: int) -> int:
        """The same rollouts by ``generate``, turn by turn, in left-padded batches; returns the useful tokens."""
        rows, sampled = [RenderedTokens(()) for _ in rollouts], 0
        for depth in range(max(len(turns) for turns in rollouts)):
            members = [number for number, turns in enumerate(rollouts) if len(turns) > depth]
            for first in range(0, len(members), batch_size):
                batch = members[first : first + batch_size]
                turns = [rollouts[number][depth] for number in batch]
                prompts = [rows[number] + turn.delta for number, turn in zip(batch, turns)]
                outputs = self._generate_batch(prompts, max(turn.num_new for turn in turns))
                for number, prompt, turn, output in zip(batch, prompts, turns, outputs):
                    rows[number] = prompt + RenderedTokens(tuple(output[: turn.num_new]))
                    sampled += turn.num_new
        return sampled

    def _generate_batch(self, prompts: list[RenderedTokens], num_new: int) -> list[list[int]]:
        longest = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(p.token_ids)) + list(p.token_ids) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts])
        inputs = {"input_ids": ids, "attention_mask": mask}
        images = [self.images.features(image_id) for prompt in prompts for image_id in prompt.image_ids]
        if images:
            inputs["pixel_values"] = torch.cat([image.pixel_values_PD for image in images])
            inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in images])
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        output = self.model.generate(
            **inputs, max_new_tokens=num_new, min_new_tokens=num_new, do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, pad_token_id=0, suppress_tokens=list(BANNED),
        )  # fmt: skip
        return output[:, longest:].tolist()


def random_text(rng: random.Random, num_tokens: int) -> tuple[int, ...]:
    """Ids that are neither special nor banned."""
    return tuple(rng.randrange(0, 380) for _ in range(num_tokens))


def with_image(before: tuple[int, ...], image_id: str, num_image_tokens: int, after: tuple[int, ...]) -> RenderedTokens:
    """Text, one image, text."""
    image = (VISION_START, *[IMAGE] * num_image_tokens, VISION_END)
    return RenderedTokens(before + image + after, (image_id,))


def uniform_text(*, num_rows: int, num_prompt: int, num_new: int) -> list[list[Turn]]:
    """Rows of equal length that share nothing."""
    rng = random.Random(0)
    return [[Turn(RenderedTokens(random_text(rng, num_prompt)), num_new)] for _ in range(num_rows)]


def trace(*, num_questions: int, num_rollouts: int) -> list[list[Turn]]:
    """The quickstart's traffic: prompts of about 36 tokens with a 6-token image, about 18 sampled tokens; half of the
    rollouts go on with an observation of about 16 tokens (a fresh 4-token image in it) and about 12 more."""
    rng = random.Random(1)
    system = random_text(rng, 14)
    rollouts = []
    for question in range(num_questions):
        text = random_text(rng, rng.randrange(10, 19))
        prompt = with_image(system, f"4x6/{question}", 6, text)
        for rollout in range(num_rollouts):
            turns = [Turn(prompt, rng.randrange(12, 25))]
            if rng.random() < 0.5:
                name = f"4x4/{question}/{rollout}"
                observation = with_image(random_text(rng, 4), name, 4, random_text(rng, rng.randrange(4, 9)))
                turns.append(Turn(observation, rng.randrange(6, 19)))
            rollouts.append(turns)
    return rollouts


def measure(run: Callable[[], int], *, repeats: int) -> dict[str, float]:
    """Best and median tokens per second over ``repeats`` runs after one warm-up.

    CPU seconds stand beside wall seconds: on one thread they agree on an idle machine, and on a shared one they leave
    out what the neighbours took.
    """
    run()
    calls = repeated(run, repeats=repeats)
    wall_s, cpu_s, num_tokens = [c.wall_s for c in calls], [c.cpu_s for c in calls], calls[-1].result
    return {
        "tokens_per_s_best": round(num_tokens / min(wall_s)),
        "tokens_per_s_median": round(num_tokens / statistics.median(wall_s)),
        "tokens_per_cpu_s_best": round(num_tokens / min(cpu_s)),
        "tokens_per_cpu_s_median": round(num_tokens / statistics.median(cpu_s)),
        "cpu_s_best": round(min(cpu_s), 4),
        "tokens": num_tokens,
    }


def bench_uniform(bench: Bench, repeats: int) -> dict[str, object]:
    """64 prompts of 64 tokens, 64 new ones."""
    rollouts = uniform_text(num_rows=64, num_prompt=64, num_new=64)
    engine = bench.engine(max_num_seqs=64, max_model_len=128)
    return {
        "engine": measure(lambda: bench.serve(engine, rollouts), repeats=repeats),
        "generate": measure(lambda: bench.generate(rollouts, batch_size=64), repeats=max(1, repeats // 2)),
        "aim_tokens_per_s": 8000,
    }


def bench_trace(bench: Bench, repeats: int) -> dict[str, object]:
    """20 questions × 8 rollouts, 128 at a time."""
    rollouts = trace(num_questions=20, num_rollouts=8)
    engine = bench.engine(max_num_seqs=128, max_model_len=112)
    engine_alone = bench.engine(max_num_seqs=128, max_model_len=112, share_prefixes=False)
    return {
        "engine": measure(lambda: bench.serve(engine, rollouts), repeats=repeats),
        "engine_without_sharing": measure(lambda: bench.serve(engine_alone, rollouts), repeats=repeats),
        "generate": measure(lambda: bench.generate(rollouts, batch_size=128), repeats=max(1, repeats // 2)),
        "aim_tokens_per_s": 4000,
    }


def bench_sharing(bench: Bench, repeats: int) -> dict[str, object]:
    """Eight continuations after one prefix of 1000, of 18 tokens (a tool call of the quickstart) and of 32."""
    prefix = RenderedTokens(random_text(random.Random(2), 1000))
    engines = {
        name: bench.engine(max_num_seqs=8, max_model_len=1040, share_prefixes=share)
        for name, share in (("shared", True), ("unshared", False))
    }
    results: dict[str, object] = {"aim_speedup": 4}
    for num_new in (18, 32):
        rollouts = [[Turn(prefix, num_new)] for _ in range(8)]
        rates = {
            name: measure(partial(bench.serve, engine, rollouts), repeats=repeats) for name, engine in engines.items()
        }
        rates["shared_source_still_cached"] = measure(
            partial(bench.serve, engines["shared"], rollouts, reload=False), repeats=repeats
        )
        rates["generate"] = measure(partial(bench.generate, rollouts, batch_size=8), repeats=max(1, repeats // 2))
        seconds = {name: rate["cpu_s_best"] for name, rate in rates.items()}
        results[f"{num_new}_new_tokens"] = rates | {
            "speedup_by_sharing": round(seconds["unshared"] / seconds["shared"], 2),
            "speedup_source_still_cached": round(seconds["unshared"] / seconds["shared_source_still_cached"], 2),
        }
    return results


def main() -> None:
    """Parses the command line, runs the three loads, writes the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wide = Bench(build_config(hidden=128, layers=4, mlp=384, head_dim=32, mrope=[6, 5, 5]))
    tiny = Bench(build_config(hidden=96, layers=3, mlp=192, head_dim=24, mrope=[4, 4, 4]))
    results = {
        "uniform_text_h128_l4": bench_uniform(wide, arguments.repeats),
        "quickstart_trace_h96_l3": bench_trace(tiny, arguments.repeats),
        "continuations_k8_1000_h128_l4": bench_sharing(wide, arguments.repeats),
    }
    print(json.dumps(results, indent=1))
    write_result(arguments.output, results)


if __name__ == "__main__":
    main()
