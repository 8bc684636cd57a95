"""From our requests to vLLM's and back.

Prompts go in expanded, with the patches of our own image processor and the place of every image: vLLM neither tokenises
nor processes anything, so it sees what the trainer will.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.inputs import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from nemo_axpo.engines.placeholders import require_same_prompt
from nemo_axpo.engines.request_checks import PlacedImage
from nemo_axpo.engines.vllm.sampling import BAN, vllm_seed
from nemo_axpo.types import Completion, GenerationRequest

_IMAGE = "image"


class RequestTranslator:
    """Translates for one model."""

    def __init__(
        self, *, image_token_id: int, stop_token_ids: Collection[int], banned_token_ids: Collection[int]
    ) -> None:
        self._image_token_id = image_token_id
        self._stop_token_ids = sorted(stop_token_ids)
        self._logit_bias = dict.fromkeys(banned_token_ids, BAN)

    def prompt(self, request: GenerationRequest, images: Sequence[PlacedImage]) -> Any:
        """What ``LLMEngine.add_request`` takes. ``images``: as ``RequestChecks`` placed them."""
        token_ids = list(request.prompt.token_ids)
        if not images:
            return tokens_input(token_ids)
        return mm_input(
            token_ids,
            mm_kwargs=MultiModalKwargsItems({_IMAGE: [_features(image) for image in images]}),
            mm_hashes={_IMAGE: [image.image_id for image in images]},
            mm_placeholders={
                _IMAGE: [PlaceholderRange(offset=image.start, length=image.stop - image.start) for image in images]
            },
        )

    def sampling(self, request: GenerationRequest) -> SamplingParams:
        """One completion, its ids and log-probs at the end; it stops at our stop tokens and no other."""
        sampling = request.sampling
        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            presence_penalty=sampling.presence_penalty,
            seed=vllm_seed(request.seed),
            logprobs=0,
            logit_bias=self._logit_bias or None,
            stop_token_ids=self._stop_token_ids,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def completion(self, output: RequestOutput, request: GenerationRequest, *, policy_version: int) -> Completion:
        """PromptMismatchError unless vLLM sampled from exactly the prompt."""
        require_same_prompt(
            request.prompt.token_ids,
            output.prompt_token_ids,
            request_id=request.request_id,
            image_token_id=self._image_token_id,
        )
        (choice,) = output.outputs
        token_ids = tuple(choice.token_ids)
        logprobs = tuple(position[token].logprob for token, position in zip(token_ids, choice.logprobs, strict=True))
        return Completion(token_ids, logprobs, choice.finish_reason, policy_version)


def _features(image: PlacedImage) -> MultiModalKwargsItem:
    """The patches under the names of Qwen3-VL's forward, with how vLLM batches them."""
    patches_PD = image.features.pixel_values_PD
    all_patches = MultiModalFlatField(slices=[slice(0, patches_PD.shape[0])], dim=0)
    return MultiModalKwargsItem(
        {
            "pixel_values": MultiModalFieldElem(data=patches_PD, field=all_patches),
            "image_grid_thw": MultiModalFieldElem(
                data=torch.tensor(image.features.grid_thw), field=MultiModalBatchedField(keep_on_cpu=True)
            ),
        }
    )
