"""Samples of the warm start: the teacher's trajectories as training rows, fresh ones each step.

A fixed pool of a few thousand is memorised and nothing generalises; here step s uses trajectories nobody has seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore
from nemo_axpo.tools.calls import parse_tool_call
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.types import RenderedTokens, TrainingSample
from nemo_axpo.world.questions import QuestionStream, rng_for
from nemo_axpo.world.trajectories import teach


class WarmStartSamples:
    """Rows of the scripted teacher; its tool calls are executed by the real tools."""

    def __init__(
        self,
        questions: QuestionStream,
        *,
        renderer: ChatRenderer,
        tools: ToolExecutor,
        image_store: ImageStore,
        tool_rate: float,
        aim_rate: float,
        seed: int,
    ) -> None:
        self._questions, self._renderer, self._tools, self._images = questions, renderer, tools, image_store
        self._tool_rate, self._aim_rate, self._seed = tool_rate, aim_rate, seed

    async def take(self, step: int, *, batch_size: int) -> tuple[TrainingSample, ...]:
        """The rows of one step. Exactly the share ``tool_rate`` uses the tool, over steps where it is no whole number."""
        num_tool = math.floor((step + 1) * batch_size * self._tool_rate) - math.floor(
            step * batch_size * self._tool_rate
        )
        start = step * batch_size
        return tuple([await self._sample(start + i, use_tool=i < num_tool) for i in range(batch_size)])

    def load_images(self, samples: Sequence[TrainingSample]) -> None:
        """They are in the store since their rows were taken."""

    async def _sample(self, index: int, *, use_tool: bool) -> TrainingSample:
        world_question = self._questions.world_question(index)
        rng = rng_for("teacher", self._seed, index)
        trajectory = teach(world_question, use_tool=use_tool, aim_rate=self._aim_rate, rng=rng)
        row = self._renderer.prompt(world_question.question)
        mask = [False] * len(row.token_ids)
        for number, text in enumerate(trajectory.turns):
            if number:
                observation = await self._observe(world_question.question.image_ids, call=trajectory.turns[number - 1])
                row, mask = row + observation, mask + [False] * len(observation.token_ids)
            token_ids = self._renderer.encode(text)
            row, mask = row + RenderedTokens(token_ids), mask + [True] * len(token_ids)
        return _supervised(world_question.question.question_id, row=row, mask=mask)

    async def _observe(self, image_ids: tuple[str, ...], *, call: str) -> RenderedTokens:
        """What the tool returns for the teacher's call."""
        parsed = parse_tool_call(
            self._renderer.encode(call),
            special=self._renderer.special,
            decode=self._renderer.decode,
            registry=self._tools.registry,
        )
        assert parsed is not None and not parsed.error, f"the teacher's call does not parse: {call!r}"
        state = self._tools.open(image_ids)
        try:
            return self._renderer.observation(await state.run(parsed))
        finally:
            await state.close()


def _supervised(question_id: str, *, row: RenderedTokens, mask: list[bool]) -> TrainingSample:
    zeros = (0.0,) * len(mask)
    return TrainingSample(
        rollout_id=question_id,
        question_id=question_id,
        token_ids=row.token_ids,
        loss_mask=tuple(mask),
        advantages=zeros,
        engine_logprobs=zeros,
        image_ids=row.image_ids,
    )
