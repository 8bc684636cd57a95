"""Rows on which engine and trainer are compared: the engine samples a few tokens after prompts of every modality.

    text          a question without its picture
    image         a question with a picture
    tool image    a model turn, then a tool's answer that shows a picture

and the last two again with the picture painted gray: the same token ids, other pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore
from nemo_axpo.engines.base import Engine
from nemo_axpo.types import (
    GenerationRequest,
    ImageId,
    ImagePart,
    Message,
    Question,
    RenderedTokens,
    SamplingParams,
    ToolResult,
    TrainingSample,
)

TEXT, IMAGE, TOOL_IMAGE = "text", "image", "tool image"
MODALITIES = (TEXT, IMAGE, TOOL_IMAGE)
_SIDE = 64
"""Pixels of the picture shown where the question has none."""


@dataclass(frozen=True)
class Probes:
    """Rows by modality; ``blanked`` has the modalities with a picture."""

    rows: Mapping[str, TrainingSample]
    blanked: Mapping[str, TrainingSample]

    @property
    def samples(self) -> tuple[TrainingSample, ...]:
        """All of them."""
        return (*self.rows.values(), *self.blanked.values())


async def sample_probes(
    engine: Engine,
    question: Question,
    *,
    renderer: ChatRenderer,
    image_store: ImageStore,
    num_tokens: int,
    temperature: float,
    name: str,
) -> Probes:
    """Asks the engine for up to ``num_tokens`` tokens after every prompt. ``name``: what the ids of the rows begin with."""
    shown = question if question.image_ids else _with_picture(question, image_store=image_store)
    prompts = {
        TEXT: renderer.prompt(_without_pictures(question)),
        IMAGE: renderer.prompt(shown),
        TOOL_IMAGE: _after_tool(renderer, question=question, image_id=shown.image_ids[0]),
    }
    rows = {}
    for modality, prompt in prompts.items():
        sampling = SamplingParams(num_tokens, temperature=temperature)
        request = GenerationRequest(f"{name}/{modality}", prompt, sampling, seed=len(rows))
        completion = await engine.generate(request)
        rows[modality] = _sample(f"{name}/{modality}", prompt, completion=completion, temperature=temperature)
    blanked = {modality: _blank(rows[modality], image_store=image_store) for modality in (IMAGE, TOOL_IMAGE)}
    return Probes(rows, blanked)


def _without_pictures(question: Question) -> Question:
    messages = (
        Message(message.role, tuple(part for part in message.parts if not isinstance(part, ImagePart)))
        for message in question.messages
    )
    return replace(question, messages=tuple(messages))


def _with_picture(question: Question, *, image_store: ImageStore) -> Question:
    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    image_id = image_store.add(Image.fromarray(pixels))
    first, *rest = question.messages
    return replace(question, messages=(Message(first.role, (ImagePart(image_id), *first.parts)), *rest))


def _after_tool(renderer: ChatRenderer, *, question: Question, image_id: ImageId) -> RenderedTokens:
    """A model turn that says nothing, and a tool's answer that shows the picture."""
    silent = RenderedTokens((renderer.special.think_end, renderer.special.im_end))
    return renderer.prompt(_without_pictures(question)) + silent + renderer.observation(ToolResult("", (image_id,)))


def _sample(rollout_id: str, prompt: RenderedTokens, *, completion, temperature: float) -> TrainingSample:
    before, after = (0.0,) * len(prompt.token_ids), completion.token_ids
    return TrainingSample(
        rollout_id=rollout_id,
        question_id=rollout_id,
        token_ids=prompt.token_ids + after,
        loss_mask=(False,) * len(before) + (True,) * len(after),
        advantages=before + (0.0,) * len(after),
        engine_logprobs=before + completion.logprobs,
        image_ids=prompt.image_ids,
        policy_version=completion.policy_version,
        temperature=temperature,
    )


def _blank(sample: TrainingSample, *, image_store: ImageStore) -> TrainingSample:
    """The same row, every picture gray and as large as it was."""
    gray = {
        image_id: image_store.add(Image.new("RGB", image_store.image(image_id).size, (128, 128, 128)))
        for image_id in sample.image_ids
    }
    blank_ids = tuple(gray[image_id] for image_id in sample.image_ids)
    return replace(sample, rollout_id=f"{sample.rollout_id}/blank", image_ids=blank_ids)
