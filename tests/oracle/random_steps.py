"""Random steps of real ``Rollout`` records, with everything that goes wrong in practice mixed in.

Literal ``<tool_call>`` tokens inside the thinking, malformed and unclosed calls, several turns, tied confidences, lost
rollouts, lost continuations, budgets from one prefix to more than there are candidates.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from nemo_axpo.types import (
    Completion,
    RenderedTokens,
    Rollout,
    RolloutStatus,
    ThinkingPrefix,
    ToolCall,
    Turn,
)

THINK_END, TOOL_CALL, TOOL_CALL_END, END = 2, 3, 4, 5
MAX_TURNS = 3


@dataclass(frozen=True)
class Settings:
    """B, N, K, r."""

    num_questions: int
    num_rollouts: int
    num_continuations: int
    resample_ratio: float


def random_settings(rng: random.Random) -> Settings:
    """From a budget of exactly one prefix to one of all candidates."""
    b, n, k = rng.randint(1, 4), rng.randint(2, 6), rng.randint(2, 4)
    quota = rng.randint(1, 6)
    return Settings(b, n, k, math.ceil(100 * (quota * k + rng.randrange(k)) / (b * n)) / 100)


def text(rng: random.Random, *, low: int, high: int) -> list[int]:
    return [rng.randint(10, 20) for _ in range(rng.randint(low, high))]


def thinking(rng: random.Random) -> list[int]:
    """Thinking through ``</think>``, now and then with a look-alike call inside."""
    decoy = [TOOL_CALL, 11, TOOL_CALL_END] if rng.random() < 0.2 else []
    return [*text(rng, low=0, high=3), *decoy, *text(rng, low=0, high=1), THINK_END]


def sampled(rng: random.Random, ids: list[int], *, frozen: Completion | None = None) -> Completion:
    """Few distinct probabilities, so that confidences tie."""
    logprobs = tuple(math.log(rng.choice((0.25, 0.5, 0.75))) for _ in ids)
    if frozen is None:
        return Completion(tuple(ids), logprobs, "stop", 0)
    return Completion(frozen.token_ids + tuple(ids), frozen.logprobs + logprobs, "stop", 0)


def call_body(rng: random.Random) -> tuple[list[int], bool]:
    """Tokens after ``<tool_call>`` through the turn's end, and whether the call was closed."""
    if rng.random() < 0.15:
        return text(rng, low=0, high=2), False
    return [*text(rng, low=0, high=3), TOOL_CALL_END, *text(rng, low=0, high=1), END], True


def calling_turn(rng: random.Random, prompt: RenderedTokens, *, frozen: Completion | None = None) -> Turn:
    """A turn with a call, sampled afresh or from the frozen tokens of a prefix on."""
    body, closed = call_body(rng)
    start = [] if frozen else [*thinking(rng), *text(rng, low=0, high=1), TOOL_CALL]
    completion = sampled(rng, start + body, frozen=frozen)
    first = len(start) + (len(frozen.token_ids) if frozen else 0)
    stop = first + body.index(TOOL_CALL_END) + 1 if closed else first + len(body)
    error = "" if closed and rng.random() < 0.7 else "the call could not be parsed"
    return Turn(prompt, completion, ToolCall(first, stop, error=error))


def answering_turn(rng: random.Random, prompt: RenderedTokens) -> Turn:
    return Turn(prompt, sampled(rng, [*thinking(rng), *text(rng, low=0, high=2), END]))


def is_closed(turn: Turn) -> bool:
    return TOOL_CALL_END in turn.completion.token_ids[turn.tool_call.start :]


def finish(rng: random.Random, turns: list[Turn]) -> RolloutStatus:
    """Appends turns until an answer, an unclosed call or the turn limit ends the rollout."""
    while turns[-1].tool_call is not None:
        if not is_closed(turns[-1]):
            return RolloutStatus.TOKEN_LIMIT
        if len(turns) == MAX_TURNS:
            return RolloutStatus.TURN_LIMIT
        observation = RenderedTokens(tuple(text(rng, low=1, high=2)))
        turns.append(rng.choice((calling_turn, answering_turn))(rng, observation))
    return RolloutStatus.ANSWERED


def random_rollout(rng: random.Random, rollout_id: str, *, prompt: RenderedTokens, skill: float) -> Rollout:
    """``skill``: chance that a tool-using answer is right."""
    turns = [rng.choice((calling_turn, answering_turn))(rng, prompt)]
    status = finish(rng, turns)
    success = skill if turns[0].tool_call else 0.4
    reward = float(status is RolloutStatus.ANSWERED and rng.random() < success)
    if rng.random() < 0.08:
        turns, status, reward = turns[: rng.randint(0, 1)], RolloutStatus.LOST, 0.0
    return Rollout(rollout_id, rollout_id.split("/")[0], tuple(turns), status, reward=reward)


def random_step(rng: random.Random, settings: Settings) -> list[Rollout]:
    """B·N ordinary rollouts in random order."""
    rollouts = []
    for q in range(settings.num_questions):
        prompt, skill = RenderedTokens(tuple(text(rng, low=1, high=3))), rng.choice((0.0, 0.0, 0.3))
        for index in range(settings.num_rollouts):
            rollouts.append(random_rollout(rng, f"q{q}/{index}", prompt=prompt, skill=skill))
    rng.shuffle(rollouts)
    return rollouts


def random_continuation(rng: random.Random, prefix: ThinkingPrefix, index: int, *, skill: float) -> Rollout:
    """One continuation; its first turn carries the frozen tokens."""
    rollout_id = f"{prefix.source_rollout_id}/k{index}"
    turns = [calling_turn(rng, prefix.prompt, frozen=prefix.completion)]
    status = finish(rng, turns)
    reward = float(status is RolloutStatus.ANSWERED and rng.random() < skill)
    if rng.random() < 0.1:
        turns, status, reward = [], RolloutStatus.LOST, 0.0
    return Rollout(rollout_id, prefix.question_id, tuple(turns), status, reward=reward, prefix=prefix)
