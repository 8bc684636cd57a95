"""The agent loop of one rollout: generate, parse the call, run the tool, render the observation, generate again.

Token ids go in and token ids come out. What the model sampled is appended to the row as it is; only observations are
rendered. A continuation runs through the same loop: its job opens the first turn with frozen tokens.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from functools import cached_property

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.engines.base import Engine, EngineError
from nemo_axpo.errors import rule_message
from nemo_axpo.rewards.extraction import extract_answer
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.seeds import ORIGINAL, turn_seed
from nemo_axpo.tools.base import ToolUnavailableError
from nemo_axpo.tools.calls import parse_tool_call
from nemo_axpo.tools.executor import ToolExecutor, ToolState
from nemo_axpo.types import (
    Completion,
    GenerationRequest,
    Question,
    RenderedTokens,
    Rollout,
    RolloutStatus,
    SamplingParams,
    ThinkingPrefix,
    Turn,
)

logger = logging.getLogger(__name__)
_NOTHING = Completion((), (), "prefix", 0)
_TOO_LONG_CURE = (
    "start a run with a higher limit, or without such questions: `nemo-axpo check-data` with model.path finds them all, and "
    "its kept.jsonl as data.files[].keep leaves them out (--resume takes neither change: both decide what was sampled)"
)


class PromptTooLongError(ValueError):
    """A question whose prompt alone fills the row."""


@dataclass(frozen=True)
class RolloutJob:
    """One rollout to run. Example: ``RolloutJob("q7/3/k0", q7, prompt, opening, seed=11, index=3, branch=0, …)``."""

    rollout_id: str
    question: Question
    prompt: RenderedTokens
    opening: RenderedTokens
    """What the engine continues in turn 1: prompt, then frozen tokens. One object for all jobs that share it."""
    seed: int
    """Of the run and step."""
    index: int
    """n of the rollout (of the source, for a continuation)."""
    branch: int = ORIGINAL
    prefix: ThinkingPrefix | None = None

    @cached_property
    def frozen(self) -> Completion:
        """Model tokens that turn 1 starts with; empty for an ordinary rollout."""
        return self.prefix.completion if self.prefix else _NOTHING


class Agent:
    """Runs rollouts with one engine, one set of tools and one set of limits; any number of them at once."""

    def __init__(
        self,
        engine: Engine,
        *,
        renderer: ChatRenderer,
        tools: ToolExecutor,
        limits: RolloutLimits,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        presence_penalty: float = 0.0,
        needs_answer_block: bool = True,
    ) -> None:
        """``temperature`` to ``presence_penalty``: as in SamplingParams; the limits decide its ``max_new_tokens``.

        ``needs_answer_block``: as ``needs_block`` of :func:`extract_answer`.
        """
        self._needs_answer_block = needs_answer_block
        self._engine, self._renderer, self._tools, self._limits = engine, renderer, tools, limits
        self._sampling = SamplingParams(limits.max_new_tokens, temperature, top_p, top_k, presence_penalty)

    @property
    def renderer(self) -> ChatRenderer:
        """Renders prompts for this agent's tools."""
        return self._renderer

    async def run(self, job: RolloutJob) -> Rollout:
        """One rollout, without its reward. LOST when the engine or a tool server failed.

        Raises PromptTooLongError for a prompt that leaves no room in ``max_row_tokens``.
        """
        self._check_room(job)
        turns: list[Turn] = []
        state = self._tools.open(job.question.image_ids)
        try:
            status = await self._run_turns(job, state=state, turns=turns)
        except (EngineError, ToolUnavailableError) as error:
            logger.warning("rollout %s is lost: %s", job.rollout_id, error)
            status = RolloutStatus.LOST
        finally:
            await state.close()
        answer = self._answer(turns[-1].completion) if status is RolloutStatus.ANSWERED else None
        return Rollout(job.rollout_id, job.question.question_id, tuple(turns), status, answer, prefix=job.prefix)

    async def _run_turns(self, job: RolloutJob, *, state: ToolState, turns: list[Turn]) -> RolloutStatus:
        """Appends the rollout's turns and says how it ended."""
        deadline = asyncio.get_running_loop().time() + self._limits.max_time_s
        delta, row, frozen = job.prompt, job.opening, job.frozen
        while True:
            sampled = await self._sample(job, row, turn=len(turns), num_frozen=len(frozen.token_ids), deadline=deadline)
            turn = self._read(delta, join_completions(frozen, sampled))
            turns.append(turn)
            if ended := self._ended(turn, num_turns=len(turns)):
                return ended
            turns[-1] = turn = replace(turn, tool_result=await state.run(turn.tool_call))
            delta = self._renderer.observation(turn.tool_result)
            row = row + RenderedTokens(sampled.token_ids) + delta
            frozen = _NOTHING
            if len(row.token_ids) >= self._limits.max_row_tokens:
                return RolloutStatus.TOKEN_LIMIT

    async def _sample(
        self, job: RolloutJob, row: RenderedTokens, *, turn: int, num_frozen: int, deadline: float
    ) -> Completion:
        """One completion within the limits; no tokens past the deadline (``time``) or without room (``length``)."""
        limits = self._limits
        room = min(limits.max_new_tokens - num_frozen, limits.max_row_tokens - len(row.token_ids))
        if room <= 0:
            return Completion((), (), "length", self._engine.policy_version)
        seed = turn_seed(
            job.seed, question_id=job.question.question_id, rollout=job.index, branch=job.branch, turn=turn
        )
        sampling, version = replace(self._sampling, max_new_tokens=room), self._engine.policy_version
        try:
            async with asyncio.timeout_at(deadline):
                request = GenerationRequest(f"{job.rollout_id}/t{turn}", row, sampling, seed)
                completion = await self._engine.generate(request)
        except TimeoutError:
            return Completion((), (), "time", self._engine.policy_version)
        if completion.finish_reason == "aborted":
            raise EngineError(f"the engine aborted request {request.request_id}")
        if completion.policy_version != version:
            raise EngineError(
                f"a completion of the policy's version {version} was asked for; request {request.request_id} got one of "
                f"{completion.policy_version}: it is refused; restart a server that this happens on again"
            )
        return completion

    def _read(self, delta: RenderedTokens, completion: Completion) -> Turn:
        call = parse_tool_call(
            completion.token_ids,
            special=self._renderer.special,
            decode=self._renderer.decode,
            registry=self._tools.registry,
        )
        return Turn(delta, completion, call)

    def _ended(self, turn: Turn, *, num_turns: int) -> RolloutStatus | None:
        """How the rollout ended with this turn; None when its tool call is to be answered."""
        if turn.completion.finish_reason == "time":
            return RolloutStatus.TIME_LIMIT
        if turn.completion.finish_reason == "length":
            return RolloutStatus.TOKEN_LIMIT
        if turn.tool_call is None:
            return RolloutStatus.ANSWERED
        return RolloutStatus.TURN_LIMIT if num_turns >= self._limits.max_turns else None

    def _answer(self, completion: Completion) -> str | None:
        """The answer after the last ``</think>`` token; None where the thinking was never closed."""
        ids, think_end = completion.token_ids, self._renderer.special.think_end
        if think_end not in ids:
            return None
        spoken = ids[len(ids) - ids[::-1].index(think_end) :]
        return extract_answer(self._renderer.decode(spoken), needs_block=self._needs_answer_block)

    def _check_room(self, job: RolloutJob) -> None:
        num_tokens = len(job.prompt.token_ids)
        if not self._limits.leaves_room(num_tokens):
            rule = f"the prompt of question {job.question.question_id!r} must be shorter than max_row_tokens"
            got = f"{num_tokens} tokens, limit {self._limits.max_row_tokens}"
            raise PromptTooLongError(rule_message(rule, got=got, cure=_TOO_LONG_CURE))


def join_completions(frozen: Completion, sampled: Completion) -> Completion:
    """Turn 1 of a continuation: the frozen tokens with the source's log-probs, then what was sampled after them."""
    return Completion(
        frozen.token_ids + sampled.token_ids,
        frozen.logprobs + sampled.logprobs,
        sampled.finish_reason,
        sampled.policy_version,
    )
