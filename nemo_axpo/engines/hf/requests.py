"""From a GenerationRequest to the engine's own state of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from transformers import Qwen3VLConfig

from nemo_axpo.engines.hf.prefix_index import chain_hashes
from nemo_axpo.engines.hf.rows import CacheRow
from nemo_axpo.engines.hf.sampling import uniform_noise
from nemo_axpo.engines.request_checks import PlacedImage, RequestChecks
from nemo_axpo.models.qwen3_vl.positions import row_positions
from nemo_axpo.types import Completion, GenerationRequest, ImageId, SamplingParams


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
    """Reads requests for one model and one cache geometry."""

    def __init__(self, config: Qwen3VLConfig, *, image_store: object, max_model_len: int) -> None:
        self._checks = RequestChecks(config, image_store=image_store, max_model_len=max_model_len)
        self._image_token_id = config.image_token_id
        self._merge_size = config.vision_config.spatial_merge_size
        self._image_numbers: dict[ImageId, int] = {}

    def read(self, request: GenerationRequest) -> ActiveRequest:
        """ValueError says the rule the request breaks, what it holds, and the cure."""
        images = self._checks.check(request)
        tokens = list(request.prompt.token_ids)
        positions_3P, next_position = row_positions(
            np.asarray(tokens) == self._image_token_id,
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

    def _keys(self, tokens: list[int], images: tuple[PlacedImage, ...]) -> list[int]:
        keys = list(tokens)
        for image in images:
            number = self._image_numbers.setdefault(image.image_id, len(self._image_numbers) + 1)
            keys[image.start : image.stop] = [-number] * (image.stop - image.start)
        return keys
