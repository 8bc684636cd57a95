"""What every engine refuses, in the same words and before anything is computed or sent.

A prompt that breaks one of these rules would fail inside a server in its own way, or worse, be served: a wrong number of
placeholders is accepted silently by more than one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from transformers import Qwen3VLConfig

from nemo_axpo.models.qwen3_vl.positions import image_runs, num_image_tokens
from nemo_axpo.types import GenerationRequest, ImageId, SamplingParams


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """One image of a prompt and the placeholders ``[start, stop)`` it fills."""

    image_id: ImageId
    features: object
    """``ImageFeatures`` of the image store: pixel_values_PD and grid_thw."""
    start: int
    stop: int


class RequestChecks:
    """Validates requests against one model and the longest row an engine can hold."""

    def __init__(self, config: Qwen3VLConfig, *, image_store: object, max_model_len: int) -> None:
        """``image_store``: anything with ``features(image_id)``, KeyError for an unknown one."""
        self._vocab_size = config.text_config.vocab_size
        self._image_token_id = config.image_token_id
        self._video_token_id = config.video_token_id
        vision = config.vision_config
        self._merge_size = vision.spatial_merge_size
        self._patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self._image_store = image_store
        self._max_model_len = max_model_len

    def check(self, request: GenerationRequest) -> tuple[PlacedImage, ...]:
        """The images of the prompt at their placeholders.

        ValueError says which request, the rule it breaks, what it holds, and the cure.
        """
        try:
            _check_sampling(request)
            ids_P = np.asarray(request.prompt.token_ids, dtype=np.int64)
            self._check_tokens(ids_P, sampling=request.sampling)
            return self._place(request.prompt.image_ids, image_runs(ids_P, image_token_id=self._image_token_id))
        except ValueError as error:
            raise ValueError(f"request {request.request_id!r}: {error}") from error

    def _check_tokens(self, ids_P: np.ndarray, *, sampling: SamplingParams) -> None:
        if not ids_P.size:
            raise ValueError("the prompt must hold at least one token, got none; send the rendered prompt")
        if ids_P.min() < 0 or ids_P.max() >= self._vocab_size:
            raise ValueError(
                f"token ids must lie in [0, {self._vocab_size}), got {ids_P.min()} to {ids_P.max()}: "
                "tokenizer and model do not belong together"
            )
        if (ids_P == self._video_token_id).any():
            raise ValueError(f"videos are not supported, got video token {self._video_token_id}; send frames as images")
        if ids_P[-1] == self._image_token_id:
            raise ValueError("the prompt ends inside an image; end it with a text token such as <|vision_end|>")
        total = ids_P.size + sampling.max_new_tokens
        if total > self._max_model_len:
            raise ValueError(
                f"prompt + max_new_tokens must fit max_model_len {self._max_model_len}, got {ids_P.size} + "
                f"{sampling.max_new_tokens} = {total}; raise max_model_len or lower max_new_tokens"
            )

    def _place(self, image_ids: tuple[ImageId, ...], runs: list[tuple[int, int]]) -> tuple[PlacedImage, ...]:
        if len(runs) != len(image_ids):
            raise ValueError(
                f"every image must own one unbroken run of placeholders {self._image_token_id}, got {len(image_ids)} "
                f"images and {len(runs)} runs; wrap each image in <|vision_start|> … <|vision_end|>"
            )
        return tuple(self._place_one(image_id, *run) for image_id, run in zip(image_ids, runs))

    def _place_one(self, image_id: ImageId, start: int, stop: int) -> PlacedImage:
        try:
            features = self._image_store.features(image_id)
        except KeyError as error:
            raise ValueError(f"image {image_id!r} is not in the image store; add it before it is used") from error
        frames, height, width = features.grid_thw
        expected = (frames * height * width, self._patch_values)
        if frames != 1 or tuple(features.pixel_values_PD.shape) != expected:
            raise ValueError(
                f"image {image_id!r} must be one frame of {expected[0]} patches × {expected[1]} values, got "
                f"{frames} frames and {tuple(features.pixel_values_PD.shape)}: use the model's own image processor"
            )
        num_tokens = num_image_tokens(features.grid_thw, merge_size=self._merge_size)
        if stop - start != num_tokens:
            raise ValueError(
                f"image {image_id!r} fills {num_tokens} placeholders, the prompt has {stop - start} at token {start}; "
                "expand the placeholders with the model's own image processor"
            )
        return PlacedImage(image_id, features, start, stop)


def _check_sampling(request: GenerationRequest) -> None:
    sampling = request.sampling
    rules = (
        (sampling.max_new_tokens >= 1, "max_new_tokens must be at least 1", sampling.max_new_tokens),
        (0 <= sampling.temperature < math.inf, "temperature must be finite, ≥ 0 (0 is greedy)", sampling.temperature),
        (0 < sampling.top_p <= 1, "top_p must lie in (0, 1]; 1 keeps everything", sampling.top_p),
        (sampling.top_k >= 0, "top_k must be ≥ 0; 0 keeps everything", sampling.top_k),
        (-2 <= sampling.presence_penalty <= 2, "presence_penalty must lie in [-2, 2]", sampling.presence_penalty),
        (0 <= request.seed < 2**64, "seed must be an unsigned 64-bit integer; derive it by hashing", request.seed),
    )
    for holds, rule, value in rules:
        if not holds:
            raise ValueError(f"{rule}, got {value}")
