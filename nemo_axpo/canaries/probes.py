"""Rows on which engine and trainer are compared: the engine samples a few tokens after prompts of every modality.

    text          a question without its picture
    image         a question with a picture
    tool image    a model turn, then a tool's answer that shows a picture

and the last two again with the picture painted gray: the same token ids, other pixels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore
from nemo_axpo.engines.base import Engine, EngineError
from nemo_axpo.types import (
    Completion,
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
TOP_K, TOP_P = "top-k", "top-p"
_SIDE = 64
"""Pixels of the picture shown where the question has none."""
_SMALLEST_TOP_P = 1e-6
"""Leaves the likeliest token alone, whatever the vocabulary."""


@dataclass(frozen=True)
class Probes:
    """Rows by modality; ``blanked`` has the modalities with a picture."""

    rows: Mapping[str, TrainingSample]
    blanked: Mapping[str, TrainingSample]
    narrowed: Mapping[str, tuple[float, ...]]
    """The engine's log-probs of a few tokens where top-k or top-p left one token to choose: 0 if renormalised."""
    num_placeholders: Mapping[str, tuple[int, int]]
    """Image placeholders in the prompt of a modality, and the tokens which the vision tower makes of its pictures."""

    @property
    def samples(self) -> tuple[TrainingSample, ...]:
        """All rows."""
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
    shown = with_picture(question, image_store=image_store)
    prompts = {
        TEXT: renderer.prompt(without_pictures(question)),
        IMAGE: renderer.prompt(shown),
        TOOL_IMAGE: _after_tool(renderer, question=question, image_id=shown.image_ids[0]),
    }
    sampling = SamplingParams(num_tokens, temperature=temperature)
    rows = await sample_rows(engine, prompts, sampling=sampling, name=name)
    blanked = {modality: _blank(rows[modality], image_store=image_store) for modality in (IMAGE, TOOL_IMAGE)}
    narrowed = {
        kind: (await engine.generate(GenerationRequest(f"{name}/{kind}", prompts[TEXT], narrow, seed=0))).logprobs
        for kind, narrow in (
            (TOP_K, replace(sampling, top_k=1)),
            (TOP_P, replace(sampling, top_p=_SMALLEST_TOP_P)),
        )
    }
    pad = renderer.special.image_pad
    num_placeholders = {
        modality: (prompts[modality].token_ids.count(pad), _num_image_tokens(prompts[modality], image_store))
        for modality in blanked
    }
    return Probes(rows, blanked, narrowed, num_placeholders)


async def sample_rows(
    engine: Sampler, prompts: Mapping[str, RenderedTokens], *, sampling: SamplingParams, name: str
) -> dict[str, TrainingSample]:
    """A row per prompt, all asked for at once, as ``<name>/<kind of prompt>``; the same seed whenever it is asked."""

    async def sample(number: int, kind: str) -> TrainingSample:
        request = GenerationRequest(f"{name}/{kind}", prompts[kind], sampling, seed=number)
        completion = await engine.generate(request)
        return _sample(request.request_id, prompts[kind], completion=completion, temperature=sampling.temperature)

    rows = await asyncio.gather(*(sample(number, kind) for number, kind in enumerate(prompts)))
    return dict(zip(prompts, rows, strict=True))


class Sampler(Protocol):
    """What a probe needs of an engine."""

    async def generate(self, request: GenerationRequest) -> Completion:
        """One completion."""


@runtime_checkable
class HasServers(Protocol):
    """An engine of several servers, of which each must show that it has the policy."""

    def by_server(self) -> Mapping[str, Sampler]:
        """Every server that is up."""


async def sample_everywhere(
    engine: Engine, prompts: Mapping[str, RenderedTokens], *, sampling: SamplingParams, name: str
) -> dict[str, dict[str, TrainingSample]]:
    """Rows by server (an engine without servers is one without a name) and kind of prompt: ``<name>/<number>/<kind>``.

    A server that fails is left out, as the engine leaves it out from there on. EngineError where all fail.
    """
    if not isinstance(engine, HasServers):
        return {"": await sample_rows(engine, prompts, sampling=sampling, name=f"{name}/0")}
    servers = engine.by_server()
    sampled = await asyncio.gather(
        *(
            sample_rows(server, prompts, sampling=sampling, name=f"{name}/{number}")
            for number, server in enumerate(servers.values())
        ),
        return_exceptions=True,
    )
    failures = [rows for rows in sampled if isinstance(rows, BaseException)]
    for failure in failures:
        if len(failures) == len(servers) or not isinstance(failure, EngineError):
            raise failure
    return {server: rows for server, rows in zip(servers, sampled, strict=True) if isinstance(rows, dict)}


def row_ids(name: str, kinds: Iterable[str], *, num_servers: int) -> list[str]:
    """Ids that rows of :func:`sample_everywhere` may have."""
    return [f"{name}/{number}/{kind}" for number in range(max(1, num_servers)) for kind in kinds]


def random_picture(seed: int, *, size: tuple[int, int] = (_SIDE, _SIDE)) -> Image.Image:
    """Noise; ``size`` is width and height in pixels."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def with_picture(question: Question, *, image_store: ImageStore) -> Question:
    """The question, with a picture of noise where it has none."""
    if question.image_ids:
        return question
    image_id = image_store.add(random_picture(0))
    first, *rest = question.messages
    return replace(question, messages=(Message(first.role, (ImagePart(image_id), *first.parts)), *rest))


def without_pictures(question: Question) -> Question:
    """The question's words alone."""
    messages = (
        Message(message.role, tuple(part for part in message.parts if not isinstance(part, ImagePart)))
        for message in question.messages
    )
    return replace(question, messages=tuple(messages))


def _after_tool(renderer: ChatRenderer, *, question: Question, image_id: ImageId) -> RenderedTokens:
    """A model turn that says nothing, and a tool's answer that shows the picture."""
    silent = RenderedTokens((renderer.special.think_end, renderer.special.im_end))
    return renderer.prompt(without_pictures(question)) + silent + renderer.observation(ToolResult("", (image_id,)))


def _num_image_tokens(prompt: RenderedTokens, image_store: ImageStore) -> int:
    return sum(image_store.features(image_id).num_tokens for image_id in prompt.image_ids)


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
