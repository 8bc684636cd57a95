"""A random tiny Qwen3-VL, an image store without a processor, and log-probs by Hugging Face's full forward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from nemo_axpo.types import Completion, GenerationRequest, RenderedTokens, SamplingParams

VOCAB_SIZE, IMAGE, VIDEO, VISION_START, VISION_END = 160, 150, 151, 152, 153
IM_END, TOOL_CALL, PADDED_IDS = 154, 155, (158, 159)
BANNED = (IMAGE, VIDEO, VISION_START, VISION_END, *PADDED_IDS)
MERGE, PATCH, PATCH_VALUES = 2, 4, 3 * 2 * 4 * 4


def tiny_config(
    *, tied: bool = False, hidden: int = 64, attention_bias: bool = False, head_dim: int = 16
) -> Qwen3VLConfig:
    """Vision tower with one DeepStack level, text decoder with grouped query heads and interleaved M-RoPE.

    ``head_dim``: of decoder and vision tower, a multiple of 16; attention kernels of GPUs want 64 and more.
    """
    sections = [section * head_dim // 16 for section in (4, 2, 2)]
    text = {
        "vocab_size": VOCAB_SIZE, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim, "max_position_embeddings": 2048,
        "rope_scaling": {"rope_type": "default", "mrope_section": sections, "mrope_interleaved": True},
        "rope_theta": 10000.0, "attention_bias": attention_bias, "tie_word_embeddings": tied,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 2 * head_dim, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": hidden,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END, tie_word_embeddings=tied,
    )  # fmt: skip


def tiny_model(config: Qwen3VLConfig, *, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Random weights large enough that every part of the model moves the logits."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return model.float().eval()


@dataclass(frozen=True)
class FakeFeatures:
    """What an image store gives: patches and the grid (time, height, width) in patches."""

    pixel_values_PD: torch.Tensor
    grid_thw: tuple[int, int, int]

    @property
    def num_tokens(self) -> int:
        return self.pixel_values_PD.shape[0] // MERGE**2


class FakeImageStore:
    """Random patches by image id."""

    def __init__(self) -> None:
        self._features: dict[str, FakeFeatures] = {}

    def add(self, image_id: str, *, height: int = 4, width: int = 4) -> str:
        """``height`` × ``width`` patches, both even."""
        generator = torch.Generator().manual_seed(len(self._features))
        patches = torch.randn(height * width, PATCH_VALUES, generator=generator)
        self._features[image_id] = FakeFeatures(patches, (1, height, width))
        return image_id

    def features(self, image_id: str) -> FakeFeatures:
        return self._features[image_id]

    def render(self, *pieces: int | str) -> RenderedTokens:
        return render(pieces, store=self)


def render(pieces: Sequence[int | str], *, store: Any) -> RenderedTokens:
    """Token ids and image ids in reading order; an image of ``store`` is wrapped and expanded to its grid."""
    tokens: list[int] = []
    for piece in pieces:
        image = [IMAGE] * store.features(piece).num_tokens if isinstance(piece, str) else None
        tokens += [piece] if image is None else [VISION_START, *image, VISION_END]
    return RenderedTokens(tuple(tokens), tuple(piece for piece in pieces if isinstance(piece, str)))


def request(prompt: RenderedTokens, *, seed: int = 0, max_new_tokens: int = 8, **sampling: float) -> GenerationRequest:
    """A request named after its seed."""
    return GenerationRequest(f"r{seed}", prompt, SamplingParams(max_new_tokens, **sampling), seed)


@torch.no_grad()
def reference_logits(model: Qwen3VLForConditionalGeneration, rendered: RenderedTokens, *, store: FakeImageStore):
    """Full forward without a cache: float32 ``[T, V]``."""
    ids = torch.tensor([rendered.token_ids])
    images = [store.features(image_id) for image_id in rendered.image_ids]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        inputs["pixel_values"] = torch.cat([image.pixel_values_PD for image in images])
        inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in images])
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    model.model.rope_deltas = None
    return model(**inputs, use_cache=False).logits[0].float()


def reference_logprobs(
    model: Qwen3VLForConditionalGeneration,
    prompt: RenderedTokens,
    completion: Completion,
    *,
    store: FakeImageStore,
    temperature: float = 1.0,
    presence_penalty: float = 0.0,
    banned: tuple[int, ...] = BANNED,
) -> torch.Tensor:
    """Log-probs float32 of the completion's tokens: banned ids masked, earlier tokens penalised, temperature applied."""
    row = prompt + RenderedTokens(completion.token_ids)
    logits_TV = reference_logits(model, row, store=store)[len(prompt.token_ids) - 1 : -1]
    logits_TV[:, list(banned)] = float("-inf")
    for number in range(len(completion.token_ids)):
        logits_TV[number, list(set(completion.token_ids[:number]))] -= presence_penalty
    targets = torch.tensor(completion.token_ids).unsqueeze(1)
    return (logits_TV / temperature).log_softmax(-1).gather(1, targets).squeeze(1)
