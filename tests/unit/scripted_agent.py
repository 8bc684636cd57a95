"""An agent whose engine replies from a script: real tokenizer, renderer, image store and zoom tool, no model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from PIL import Image

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.rewards.exact_match import ExactMatch
from nemo_axpo.rollouts.agent import Agent
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.tools.base import Tool
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.types import Completion, GenerationRequest, ImagePart, Message, Question, TextPart
from nemo_axpo.world.tokenizer import build_tokenizer

CALL = (
    '<tool_call>\n{"name": "image_zoom_in", "arguments": {"bbox_2d": [0, 0, 333, 500], "label": "dot"}}\n</tool_call>'
)
ZOOM = f"let me look\n</think>\n\n{CALL}<|im_end|>"


def answer(text: str) -> str:
    """A final model turn."""
    return f'now I see it\n</think>\n\n<answer>\n\\boxed{{"{text}"}}\n</answer><|im_end|>'


@cache
def tokenizer():
    return build_tokenizer()


def image_store() -> ImageStore:
    return ImageStore(tiny_image_processor())


Reply = str | Exception | Completion
Script = Callable[[GenerationRequest], Reply]


class ScriptedEngine:
    """Replies to each request with what ``script`` returns for it, and records the requests."""

    policy_version = 5

    def __init__(self, script: Script, *, delay_s: float = 0.0) -> None:
        self.script, self.delay_s = script, delay_s
        self.requests: list[GenerationRequest] = []
        self.in_flight = self.max_in_flight = 0

    async def generate(self, request: GenerationRequest) -> Completion:
        self.requests.append(request)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.in_flight -= 1
        reply = self.script(request)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Completion) else self.complete(reply, request.sampling.max_new_tokens)

    def complete(self, text: str, max_new_tokens: int = 10**9) -> Completion:
        """A completion of the text's tokens, cut at the bound; log-probs -1/1, -1/2, -1/3 …"""
        ids = tuple(tokenizer().encode(text, add_special_tokens=False))
        kept = ids[:max_new_tokens]
        reason = "stop" if kept == ids else "length"
        return Completion(kept, tuple(-1 / (i + 1) for i in range(len(kept))), reason, self.policy_version)

    def load_weights(self, named_tensors: Iterable[tuple[str, object]], *, policy_version: int) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def by_turn(*texts: Reply) -> Script:
    """Replies to turn t of every rollout with ``texts[t]``."""
    return lambda request: texts[turn_of(request)]


def turn_of(request: GenerationRequest) -> int:
    return int(request.request_id.rpartition("/t")[2])


def rollout_of(request: GenerationRequest) -> str:
    return request.request_id.rpartition("/t")[0]


def make_question(store: ImageStore, question_id: str = "q7", *, colour: str = "red") -> Question:
    """A 192 × 128 picture of one colour and a question about it."""
    image_id = store.add(Image.new("RGB", (192, 128), colour))
    parts = (ImagePart(image_id), TextPart("colour of the dot in row 1, column 1?"))
    return Question(question_id, (Message("user", parts),), colour, "world")


def make_agent(
    engine: ScriptedEngine,
    store: ImageStore,
    *,
    tools: Sequence[Tool] | None = None,
    limits: RolloutLimits | None = None,
    timeout_s: float = 5.0,
) -> Agent:
    """An agent with the zoom tool (or the tools given) and limits that do not bind."""
    registry = ToolRegistry([ImageZoomIn(store, observation="image {index}:")] if tools is None else tools)
    return Agent(
        engine,
        renderer=ChatRenderer(tokenizer(), store, tool_schemas=registry.schemas),
        tools=ToolExecutor(registry, timeout_s=timeout_s),
        limits=limits or RolloutLimits(max_new_tokens=200, max_row_tokens=1000),
    )


def make_producer(agent: Agent, *, max_retries: int = 2) -> Producer:
    verifiers = VerifierRegistry({"world": ExactMatch()})
    return Producer(agent, verifiers=verifiers, max_retries=max_retries, retry_delay_s=0.0)


def random_policy(request):
    """Half the turns zoom, and a third of the answers are right; depends on the seed alone, as the engine contract asks."""
    rng = random.Random(request.seed)
    if turn_of(request) < 2 and rng.random() < 0.5:
        return ZOOM
    return answer(rng.choice(["red", "blue", "green"]))
