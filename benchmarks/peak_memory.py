"""Peak memory of one optimizer step against the plan's prediction: a real actor with random weights, one process.

    OMP_NUM_THREADS=1 python benchmarks/peak_memory.py --suite --output benchmarks/results/peak_memory.json
    python benchmarks/peak_memory.py --device cuda --model 2b --dtype bfloat16 --row-tokens 4096 --image-side 64

On a GPU the measure is ``torch.cuda.max_memory_allocated`` (not yet run on a GPU). On the CPU it is the largest sum of
live allocations in torch's memory profile of the step, on top of what the actor holds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from environment import argument_parser, write_result
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3VLConfig

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied, parameter_shapes
from nemo_axpo.models.qwen3_vl.loading import save_hf_checkpoint
from nemo_axpo.plan.activations import MicrobatchShape
from nemo_axpo.plan.batch import StepArithmetic
from nemo_axpo.plan.engine import EngineMemory
from nemo_axpo.plan.memory import RankMemory, stage_memory
from nemo_axpo.plan.published import SIZES, published_config
from nemo_axpo.plan.settings import BYTES, TrainerSettings
from nemo_axpo.plan.sizes import model_sizes
from nemo_axpo.types import TrainBatch, TrainingSample

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FIRST_TEXT_ID = 8
"""Ids below stand for images."""
IMAGE, VIDEO, VISION_START, VISION_END = range(4)


@dataclass(frozen=True)
class Features:
    """Patches of one image and its grid."""

    pixel_values_PD: torch.Tensor
    grid_thw: tuple[int, int, int]


class SquareImages:
    """An image store whose images are random squares of ``side`` patches."""

    def __init__(self, side: int, *, patch_values: int) -> None:
        self._features = Features(torch.randn(side * side, patch_values), (1, side, side))

    def features(self, image_id: str) -> Features:
        """The same patches for every id."""
        return self._features


def small_config() -> Qwen3VLConfig:
    """A model of a few million parameters, wide enough that tensors outweigh indices."""
    text = {
        "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4, "patch_size": 8,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 256,
        "num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1, 2],
    }  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def model_config(name: str) -> Qwen3VLConfig:
    """``small`` or a published size, with the benchmark's own ids of images."""
    config = small_config() if name == "small" else published_config(name)
    config.image_token_id, config.video_token_id = IMAGE, VIDEO
    config.vision_start_token_id, config.vision_end_token_id = VISION_START, VISION_END
    return config


def random_tensors(hf_config: Qwen3VLConfig, *, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Small random weights, one tensor at a time."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in parameter_shapes(hf_config).items():
        if name != LM_HEAD or not is_tied(hf_config):
            yield name, (0.02 * torch.randn(shape, generator=generator)).to(dtype)


def rows(count: int, *, num_tokens: int, image_side: int, num_trained: int) -> list[TrainingSample]:
    """Rows that share nothing: an image, then text, whose last ``num_trained`` tokens are trained."""
    generator = torch.Generator().manual_seed(1)
    num_image_tokens = image_side**2 // 4
    prompt = [VISION_START, *[IMAGE] * num_image_tokens, VISION_END] if image_side else []
    samples = []
    for number in range(count):
        text = torch.randint(FIRST_TEXT_ID, 1024, (num_tokens - len(prompt) - 1,), generator=generator).tolist()
        ids = [FIRST_TEXT_ID + number, *prompt, *text]
        mask = [False] * (num_tokens - num_trained) + [True] * num_trained
        samples.append(
            TrainingSample(
                rollout_id=str(number), question_id=str(number), token_ids=tuple(ids), loss_mask=tuple(mask),
                advantages=tuple(map(float, mask)), engine_logprobs=(0.0,) * len(ids),
                image_ids=(f"image {number}",) if image_side else (), temperature=1.0,
            )
        )  # fmt: skip
    return samples


def memory_settings(options: argparse.Namespace) -> MemorySettings:
    """Recomputation and chunk of the options; selective recomputation is that of the MLP."""
    return MemorySettings(
        recompute=options.recompute, recompute_modules=("mlp",), logprob_chunk_tokens=options.chunk_tokens
    )


def predicted(hf_config: Qwen3VLConfig, *, options: argparse.Namespace) -> RankMemory:
    """The plan's memory of exactly these rows."""
    image_tokens = options.image_side**2 // 4
    per_microbatch, num_tokens = options.rows_per_microbatch, options.rows * options.row_tokens
    shape = MicrobatchShape(
        per_microbatch * options.row_tokens, per_microbatch * image_tokens, per_microbatch * options.trained_tokens
    )
    step = StepArithmetic(
        options.rows, 0, 0, options.rows, num_tokens, per_microbatch, -(-options.rows // per_microbatch), shape
    )
    settings = TrainerSettings(
        1, 1, 1, BYTES[options.dtype], per_microbatch * options.row_tokens, memory=memory_settings(options),
        packs_thd=options.device == "cuda" and options.dtype == "bfloat16", is_on_host=options.device == "cpu",
    )  # fmt: skip
    return stage_memory(
        model_sizes(hf_config), settings=settings, step=step, engine=EngineMemory(0.0, 0.0, 0.0), stage=0
    )


def peak_of(run: Callable[[], Any], *, device: str) -> int:
    """Bytes that ``run`` needs at most on top of what is there before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Predicted and measured bytes of the second update, on top of what the actor holds."""
    hf_config, dtype = model_config(options.model), DTYPES[options.dtype]
    patch_values = model_sizes(hf_config).vision.patch_values
    with tempfile.TemporaryDirectory() as directory:
        save_hf_checkpoint(directory, random_tensors(hf_config, dtype=dtype), hf_config=hf_config)
        actor = Actor(
            directory, image_store=SquareImages(options.image_side or 2, patch_values=patch_values),
            banned_token_ids=(IMAGE, VIDEO, VISION_START, VISION_END), optimizer=AdamSettings(1e-6), dtype=dtype,
            device=options.device, micro_batch_tokens=options.rows_per_microbatch * options.row_tokens,
            memory=memory_settings(options),
        )  # fmt: skip
    samples = rows(
        options.rows, num_tokens=options.row_tokens, image_side=options.image_side, num_trained=options.trained_tokens
    )
    batch = TrainBatch(tuple(samples), num_planned_rollouts=len(samples))
    actor.update(batch, loss=PolicyLoss())  # creates the optimizer's state
    peak = peak_of(lambda: actor.update(batch, loss=PolicyLoss()), device=options.device)
    memory = predicted(hf_config, options=options)
    expected = memory.total - memory.held
    kinds = {name: size for name, size in vars(memory).items() if size}
    return {"predicted": expected, "measured": peak, "ratio": expected / peak, "held": memory.held, "kinds": kinds}


SUITE = {
    "text": "",
    "text, float32": "--dtype float32",
    "text, chunks of 64 logits": "--trained-tokens 1000 --chunk-tokens 64",
    "long rows": "--rows 2 --row-tokens 4096 --trained-tokens 8",
    "images": "--image-side 32 --trained-tokens 700",
    "images, two rows a micro-batch": "--image-side 32 --rows-per-microbatch 2",
    "long rows, MLP recomputed": "--rows 2 --row-tokens 4096 --trained-tokens 8 --recompute selective",
    "long rows, layers recomputed": "--rows 2 --row-tokens 4096 --trained-tokens 8 --recompute full",
    "images, layers recomputed": "--rows 2 --row-tokens 4096 --trained-tokens 8 --image-side 96 --recompute full",
}
"""Cases by name, as options; the model is the small one, in bf16."""


def build_parser() -> argparse.ArgumentParser:
    """Options of one measurement."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=("small", *SIZES), default="small")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--chunk-tokens", type=int, help="trained tokens whose logits exist at the same time")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rows-per-microbatch", type=int, default=1)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--trained-tokens", type=int, default=512, help="of each row")
    parser.add_argument("--image-side", type=int, default=0, help="patches along the side of each row's image; 0: none")
    parser.add_argument("--suite", action="store_true", help="the cases of the committed results, on the CPU")
    return parser


def main() -> None:
    """One measurement, or the suite."""
    parser = build_parser()
    options = parser.parse_args()
    cases = {name: parser.parse_args(text.split()) for name, text in SUITE.items()} if options.suite else {"": options}
    results = {}
    for name, case in cases.items():
        results[name] = measure(case)
        predicted, measured = (results[name][key] / 2**20 for key in ("predicted", "measured"))
        print(f"{name}: predicted {predicted:.1f} MiB, measured {measured:.1f} MiB, ratio {predicted / measured:.3f}")
    write_result(options.output, {"results": results})


if __name__ == "__main__":
    main()
