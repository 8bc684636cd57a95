"""A random tiny Qwen3-VL with two DeepStack levels, its checkpoint, and rows with images through transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from nemo_axpo.types import RenderedTokens, TrainingSample

VOCAB_SIZE, IMAGE, VIDEO, VISION_START, VISION_END = 96, 90, 91, 92, 93
BANNED = (IMAGE, VIDEO, VISION_START, VISION_END, 95)
MERGE, PATCH_VALUES = 2, 3 * 2 * 4 * 4


def tiny_config(*, tied: bool = False, layers: int = 3) -> Qwen3VLConfig:
    """Every mechanism of the large ones: grouped query heads, QK-norm, interleaved M-RoPE, DeepStack."""
    text = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 32,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    return Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END, tie_word_embeddings=tied,
    )  # fmt: skip


def tiny_model(config: Qwen3VLConfig, *, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Float32 weights random enough that every part moves the logits."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.float()


def save_checkpoint(path: Path, *, tied: bool = False, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Writes a checkpoint directory; returns the model it holds."""
    model = tiny_model(tiny_config(tied=tied), seed=seed)
    model.save_pretrained(path)
    return model


@dataclass(frozen=True)
class Features:
    """Patches of one image and its grid."""

    pixel_values_PD: torch.Tensor
    grid_thw: tuple[int, int, int]


class RandomImages:
    """An image store of random patches; an id names its grid: ``<height>x<width>/<anything>``."""

    def __init__(self) -> None:
        self._features: dict[str, Features] = {}

    def features(self, image_id: str) -> Features:
        """The same patches for the same id."""
        if image_id not in self._features:
            height, width = map(int, image_id.split("/")[0].split("x"))
            generator = torch.Generator().manual_seed(sum(image_id.encode()))
            patches = torch.randn(height * width, PATCH_VALUES, generator=generator)
            self._features[image_id] = Features(patches, (1, height, width))
        return self._features[image_id]


def rendered(*pieces: int | str) -> RenderedTokens:
    """Tokens and images (by id, which names their grid) as a renderer expands them."""
    tokens: list[int] = []
    for piece in pieces:
        if isinstance(piece, str):
            height, width = map(int, piece.split("/")[0].split("x"))
            tokens += [VISION_START, *[IMAGE] * (height * width // MERGE**2), VISION_END]
        else:
            tokens.append(piece)
    return RenderedTokens(tuple(tokens), tuple(piece for piece in pieces if isinstance(piece, str)))


def sample(
    *pieces: int | str,
    trained: int,
    name: str = "r",
    question: str = "q",
    advantage: float = 1.0,
    engine_logprob: float = 0.0,
    temperature: float = 1.0,
) -> TrainingSample:
    """A row of tokens and images (by id, in reading order) whose last ``trained`` tokens are trained."""
    row = rendered(*pieces)
    mask = [False] * (len(row.token_ids) - trained) + [True] * trained
    return TrainingSample(
        rollout_id=name,
        question_id=question,
        token_ids=row.token_ids,
        loss_mask=tuple(mask),
        advantages=tuple(advantage * trained for trained in mask),
        engine_logprobs=tuple(engine_logprob * trained for trained in mask),
        image_ids=row.image_ids,
        temperature=temperature,
    )


def mixed_samples() -> list[TrainingSample]:
    """Rows with 0, 1 and 2 images of different grids, long and short, some sharing a beginning."""
    return [
        sample(1, 2, "4x4/a", 5, 6, 7, 8, trained=3, name="0", question="q0"),
        sample(1, 2, "4x4/a", 5, 6, 9, trained=2, name="1", question="q0", advantage=-0.5),
        sample(1, 2, "4x4/a", 5, 6, 9, 10, 11, "2x4/c", 12, 13, trained=2, name="2", question="q0", advantage=0.3),
        sample(1, 2, "4x4/b", 5, 6, 9, trained=2, name="3", question="q1", advantage=0.7),
        sample(20, 21, 22, 23, 24, 25, trained=4, name="4", question="q2", advantage=-1.0),
        sample("6x4/d", 30, "4x4/a", 31, 32, 33, trained=3, name="5", question="q3", advantage=0.4),
    ]


def transformers_logits(
    model: Qwen3VLForConditionalGeneration, row: TrainingSample, *, images: RandomImages
) -> torch.Tensor:
    """Logits ``[T, V]`` of one row alone, unpadded; differentiable."""
    ids = torch.tensor([row.token_ids])
    features = [images.features(image_id) for image_id in row.image_ids]
    inputs: dict = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if features:
        inputs["pixel_values"] = torch.cat([image.pixel_values_PD for image in features])
        inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in features])
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    model.model.rope_deltas = None
    return model(**inputs).logits[0]


def transformers_logprobs(
    model: Qwen3VLForConditionalGeneration, row: TrainingSample, *, images: RandomImages
) -> torch.Tensor:
    """Log-probs ``[T]`` of every token but the first (0 there), as the engine samples: temperature, banned ids."""
    logits_TV = transformers_logits(model, row, images=images) / row.temperature
    banned_V = torch.zeros(logits_TV.shape[1]).index_fill(0, torch.tensor(BANNED), float("-inf"))
    logprobs_TV = (logits_TV + banned_V).log_softmax(-1)
    targets = torch.tensor(row.token_ids[1:]).unsqueeze(1)
    return torch.cat([torch.zeros(1), logprobs_TV[:-1].gather(1, targets).squeeze(1)])


def trained_logprobs(
    model: Qwen3VLForConditionalGeneration, rows: Sequence[TrainingSample], *, images: RandomImages
) -> torch.Tensor:
    """Log-probs of the trained tokens of all rows, one after another."""
    per_row = [transformers_logprobs(model, row, images=images)[torch.tensor(row.loss_mask)] for row in rows]
    return torch.cat(per_row)
