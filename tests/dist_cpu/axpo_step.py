"""One AXPO step with fixed rollouts, small enough to read and with everything in it that changes a row's mask or weight.

    q0   two tool calls, both wrong: triggered. 0/k0-k2 all arrive (one right); every continuation of 1 is lost
    q1   one tool call, wrong: triggered. One of its three continuations is lost, and an ordinary rollout too
    q2   a tool call is right: not triggered
    q3   no tool, no image: not triggered
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tiny_qwen3_vl import rendered

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.confidence import resample_scores, rollout_scores
from nemo_axpo.data.samples import build_samples, cut_prefix
from nemo_axpo.types import (
    Completion,
    RenderedTokens,
    Rollout,
    RolloutStatus,
    ThinkingPrefix,
    ToolCall,
    TrainingSample,
    Turn,
)

TOOL_CALL, TOOL_CALL_END, END = 80, 81, 82
ALGORITHM = Axpo(num_questions=4, num_rollouts=4, num_continuations=3, resample_ratio=0.6)
"""r·B·N / K = 9.6 / 3: three prefixes."""
NUM_PLANNED = 16
TEMPERATURE = 0.9
PROMPTS = {"q0": (1, 2, "4x4/a", 5), "q1": (1, 2, "4x4/b", 5, 6), "q2": (1, 2, "2x4/c", "4x4/a", 7), "q3": (1, 2, 8, 9)}
REWARDS = {  # (uses the tool, reward) of every ordinary rollout; None where it was lost
    "q0": ((True, 0.0), (True, 0.0), (False, 1.0), (False, 0.0)),
    "q1": ((True, 0.0), (False, 1.0), (False, 0.0), None),
    "q2": ((True, 1.0), (True, 0.0), (False, 0.0), (False, 1.0)),
    "q3": ((False, 1.0), (False, 0.0), (False, 0.0), (False, 1.0)),
}
CONTINUATIONS = {"q0/0": (0.0, 1.0, 0.0), "q0/1": (None, None, None), "q1/0": (1.0, None, 0.0)}


@dataclass(frozen=True)
class _Writer:
    """Sampled tokens with log-probs from one generator."""

    rng: random.Random

    def completion(self, token_ids: list[int], *, frozen: Completion | None = None) -> Completion:
        logprobs = tuple(-self.rng.uniform(0.1, 3.0) for _ in token_ids)
        if frozen is None:
            return Completion(tuple(token_ids), logprobs, "stop", 0)
        return Completion(frozen.token_ids + tuple(token_ids), frozen.logprobs + logprobs, "stop", 0)

    def text(self, low: int, high: int) -> list[int]:
        return [self.rng.randint(10, 60) for _ in range(self.rng.randint(low, high))]

    def calling_turns(self, prompt: RenderedTokens, *, frozen: Completion | None = None) -> tuple[Turn, ...]:
        """Thinking (or the frozen prefix), a call, the crop, an answer."""
        thinking = [] if frozen else [*self.text(2, 5), TOOL_CALL]
        call = [*self.text(1, 3), TOOL_CALL_END, END]
        start = len(frozen.token_ids) if frozen else len(thinking)
        completion = self.completion(thinking + call, frozen=frozen)
        crop = rendered(62, self.rng.choice(("6x4/d", "2x4/e", "4x4/f")), 63)
        first = Turn(prompt, completion, ToolCall(start, start + len(call) - 1))
        return first, Turn(crop, self.completion([*self.text(1, 4), END]))

    def rollout(self, rollout_id: str, *, uses_tool: bool, reward: float) -> Rollout:
        question = rollout_id.split("/")[0]
        prompt = rendered(*PROMPTS[question])
        turns = self.calling_turns(prompt) if uses_tool else (Turn(prompt, self.completion([*self.text(2, 7), END])),)
        return Rollout(rollout_id, question, turns, RolloutStatus.ANSWERED, reward=reward)

    def continuation(self, prefix: ThinkingPrefix, number: int, *, reward: float | None) -> Rollout:
        rollout_id = f"{prefix.source_rollout_id}/k{number}"
        turns = self.calling_turns(prefix.prompt, frozen=prefix.completion)
        if reward is None:
            return Rollout(rollout_id, prefix.question_id, (), RolloutStatus.LOST, prefix=prefix)
        return Rollout(rollout_id, prefix.question_id, turns, RolloutStatus.ANSWERED, reward=reward, prefix=prefix)


def axpo_samples() -> tuple[TrainingSample, ...]:
    """The rows of the step, the same in every process."""
    writer = _Writer(random.Random("axpo step"))
    rollouts = []
    for question, outcomes in REWARDS.items():
        for number, outcome in enumerate(outcomes):
            rollout_id = f"{question}/{number}"
            if outcome is None:
                rollouts.append(Rollout(rollout_id, question, (), RolloutStatus.LOST))
            else:
                rollouts.append(writer.rollout(rollout_id, uses_tool=outcome[0], reward=outcome[1]))
    scores = rollout_scores(rollouts)
    plan = ALGORITHM.plan(scores)
    assert {source.rollout_id for source in plan.sources} == set(CONTINUATIONS)
    by_id = {rollout.rollout_id: rollout for rollout in rollouts}
    continuations = [
        writer.continuation(cut_prefix(by_id[source.rollout_id], confidence=source.confidence), number, reward=reward)
        for source in sorted(plan.sources, key=lambda source: source.rollout_id)
        for number, reward in enumerate(CONTINUATIONS[source.rollout_id])
    ]
    credits = ALGORITHM.credit(scores, plan, resample_scores(continuations))
    return build_samples([*rollouts, *continuations], credits, temperature=TEMPERATURE)
