"""From a GenerationRequest to the engine's own state of it: everything that can be refused is refused here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from transformers import Qwen3VLConfig

from nemo_axpo.engines.hf.prefix_index import chain_hashes
from nemo_axpo.engines.hf.rows import CacheRow
from nemo_axpo.engines.hf.sampling import uniform_noise
from nemo_axpo.models.qwen3_vl.positions import image_runs, num_image_tokens, row_positions
from nemo_axpo.types import Completion, GenerationRequest, ImageId, SamplingParams


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """One image of a prompt and the placeholders ``[start, stop)`` it fills."""

    image_id: ImageId
    features: object
    """``ImageFeatures`` of the image store: pixel_values_PD and grid_thw."""
    start: int
    stop: int


@dataclass(eq=False, slots=True)
class ActiveRequest:
    """A request on its way: waiting, then running in ``row``. P prompt tokens."""

    tokens: list[int]
    """Prompt, then sampled tokens."""
    num_prompt: int
    sampling: SamplingParams
    uniforms: list[float]
    """One uniform per token that may be sampled."""
    keys: list[int]
    """Prompt tokens as the prefix index compares them: an image's number, negative, at its placeholders."""
    hashes: list[int]
    images: tuple[PlacedImage, ...]
    positions_3P: np.ndarray
    rope_shift: int
    """Rotary position minus token index, from the last prompt token on."""
    logprobs: list[float] = field(default_factory=list)
    row: CacheRow | None = None
    """Set while running."""

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values are computed while running: all but the newest."""
        return len(self.tokens) - 1

    def completion(self, *, finish_reason: str, policy_version: int) -> Completion:
        """The record of what was sampled so far."""
        return Completion(tuple(self.tokens[self.num_prompt :]), tuple(self.logprobs), finish_reason, policy_version)


class RequestReader:
    """Validates requests against one model and one cache geometry."""

    def __init__(self, config: Qwen3VLConfig, *, image_store: object, max_model_len: int) -> None:
        self._vocab_size = config.text_config.vocab_size
        self._image_token_id = config.image_token_id
        self._video_token_id = config.video_token_id
        vision = config.vision_config
        self._merge_size = vision.spatial_merge_size
        self._patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self._image_store = image_store
        self._max_model_len = max_model_len
        self._image_numbers: dict[ImageId, int] = {}

    def read(self, request: GenerationRequest) -> ActiveRequest:
        """ValueError says the rule the request breaks, what it holds, and the cure."""
        try:
            return self._read(request)
        except ValueError as error:
            raise ValueError(f"request {request.request_id!r}: {error}") from error

    def _read(self, request: GenerationRequest) -> ActiveRequest:
        tokens = list(request.prompt.token_ids)
        _check_sampling(request)
        ids_P = np.asarray(tokens, dtype=np.int64)
        self._check_tokens(ids_P, sampling=request.sampling)
        runs = image_runs(ids_P, image_token_id=self._image_token_id)
        images = self._place(request.prompt.image_ids, runs)
        positions_3P, next_position = row_positions(
            ids_P == self._image_token_id,
            grids=[tuple(image.features.grid_thw) for image in images],
            merge_size=self._merge_size,
        )
        keys = self._keys(tokens, images)
        return ActiveRequest(
            tokens=tokens,
            num_prompt=len(tokens),
            sampling=request.sampling,
            uniforms=uniform_noise(request.seed, num_tokens=request.sampling.max_new_tokens),
            keys=keys,
            hashes=chain_hashes(keys),
            images=images,
            positions_3P=positions_3P,
            rope_shift=next_position - len(tokens),
        )

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

    def _keys(self, tokens: list[int], images: tuple[PlacedImage, ...]) -> list[int]:
        keys = list(tokens)
        for image in images:
            number = self._image_numbers.setdefault(image.image_id, len(self._image_numbers) + 1)
            keys[image.start : image.stop] = [-number] * (image.stop - image.start)
        return keys


def _check_sampling(request: GenerationRequest) -> None:
    sampling = request.sampling
    rules = (
        (sampling.max_new_tokens >= 1, "max_new_tokens must be at least 1", sampling.max_new_tokens),
        (0 <= sampling.temperature < math.inf, "temperature must be finite, ≥ 0 (0 is greedy)", sampling.temperature),
        (0 < sampling.top_p <= 1, "top_p must lie in (0, 1]; 1 keeps everything", sampling.top_p),
        (sampling.top_k >= 0, "top_k must be ≥ 0; 0 keeps everything", sampling.top_k),
        (0 <= request.seed < 2**64, "seed must be an unsigned 64-bit integer; derive it by hashing", request.seed),
    )
    for holds, rule, value in rules:
        if not holds:
            raise ValueError(f"{rule}, got {value}")
