"""The product against the brute-force oracle on random steps, and the invariants every step must keep."""

from __future__ import annotations

import collections
import math
import random

import axpo_oracle as oracle
import pytest
import random_steps

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.confidence import resample_scores, rollout_scores
from nemo_axpo.algorithms.grpo import Grpo
from nemo_axpo.data.samples import build_samples, cut_prefix
from nemo_axpo.types import ResamplePlan, Rollout, RolloutStatus, TrainingSample

NUM_CASES = 600


class Step:
    """One random step taken through the product: rollouts, plan, continuations, samples."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.settings = random_steps.random_settings(rng)
        self.rollouts = random_steps.random_step(rng, self.settings)
        self.algorithm = Axpo(**vars(self.settings))
        scores = rollout_scores(self.rollouts)
        self.plan = self.algorithm.plan(scores)
        self.continuations = self._resample(rng)
        resamples = resample_scores(self.continuations)
        self.credits = self.algorithm.credit(scores, self.plan, resamples)
        rows = [*self.rollouts, *self.continuations]
        self.samples = build_samples(rows, self.credits, temperature=1.0)

    def _resample(self, rng: random.Random) -> list[Rollout]:
        by_id = {rollout.rollout_id: rollout for rollout in self.rollouts}
        rows = []
        for score in self.plan.sources:
            prefix = cut_prefix(by_id[score.rollout_id], confidence=score.confidence)
            skill = rng.choice((0.0, 0.3, 0.9))
            lose_all = rng.random() < 0.05
            for k in range(self.plan.num_continuations):
                row = random_steps.random_continuation(rng, prefix, k, skill=skill)
                lost = Rollout(row.rollout_id, row.question_id, (), RolloutStatus.LOST, prefix=prefix)
                rows.append(lost if lose_all else row)
        rng.shuffle(rows)
        return rows

    @property
    def oracle_setting(self) -> oracle.Setting:
        s = self.settings
        specials = (random_steps.THINK_END, random_steps.TOOL_CALL, random_steps.TOOL_CALL_END)
        return oracle.Setting(s.num_questions, s.num_rollouts, s.num_continuations, str(s.resample_ratio), *specials)


def oracle_row(rollout: Rollout) -> oracle.Row:
    """The raw tokens of a rollout; nothing the product derived from them, but for the length of a frozen prefix."""
    tokens = [
        oracle.Token(token, math.exp(logprob) if is_model else None)
        for token, is_model, logprob in zip(rollout.token_ids, rollout.model_mask, rollout.logprobs, strict=True)
    ]
    return oracle.Row(
        rollout.rollout_id,
        rollout.question_id,
        tuple(tokens),
        is_correct=rollout.reward == 1.0,
        is_lost=rollout.status is RolloutStatus.LOST,
        source_id=rollout.prefix.source_rollout_id if rollout.prefix else None,
        num_shared=rollout.prefix.num_tokens if rollout.prefix else 0,
    )


def trained_tokens(samples: tuple[TrainingSample, ...]) -> dict[tuple[str, int], float]:
    """``{(rollout id, token index): advantage}`` of the unmasked tokens."""
    return {
        (sample.rollout_id, t): sample.advantages[t]
        for sample in samples
        for t, trained in enumerate(sample.loss_mask)
        if trained
    }


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return [Step(seed) for seed in range(NUM_CASES)]


def test_selection_agrees_with_the_oracle(steps):
    for step in steps:
        expected = oracle.select([oracle_row(row) for row in step.rollouts], step.oracle_setting)
        assert [source.rollout_id for source in step.plan.sources] == expected


def test_every_token_has_the_advantage_the_oracle_gives_it(steps):
    for step in steps:
        rows = [[oracle_row(row) for row in part] for part in (step.rollouts, step.continuations)]
        expected = oracle.token_advantages(*rows, step.oracle_setting)
        assert trained_tokens(step.samples) == pytest.approx(expected, abs=1e-9)


def test_source_and_continuation_masks_never_overlap_and_train_each_sampled_token_at_most_once(steps):
    """A frozen token is the same sampled token in the source and in its K copies: it is keyed by the source here."""
    for step in steps:
        rows = {row.rollout_id: row for row in [*step.rollouts, *step.continuations]}
        updates: collections.Counter[tuple[str, int]] = collections.Counter()
        for rollout_id, t in trained_tokens(step.samples):
            prefix = rows[rollout_id].prefix
            assert rows[rollout_id].model_mask[t]
            updates[(prefix.source_rollout_id if prefix and t < prefix.num_tokens else rollout_id, t)] += 1
        assert set(updates.values()) <= {1}


def test_every_sampled_token_is_trained_except_the_failed_call_of_a_resampled_source(steps):
    for step in steps:
        trained = trained_tokens(step.samples)
        resampled = {row.prefix.source_rollout_id for row in step.continuations if row.status is not RolloutStatus.LOST}
        for row in (row for row in step.rollouts if row.status is not RolloutStatus.LOST):
            sampled = [t for t, is_model in enumerate(row.model_mask) if is_model]
            masked = [t for t in sampled if (row.rollout_id, t) not in trained]
            first = row.turns[0]
            cut = len(first.prompt_delta.token_ids) + first.tool_call.start if first.tool_call else None
            assert masked == ([t for t in sampled if t >= cut] if row.rollout_id in resampled else [])


def test_grpo_is_axpo_with_an_empty_plan(steps):
    for step in steps[:100]:
        scores = rollout_scores(step.rollouts)
        grpo = Grpo(num_questions=step.settings.num_questions, num_rollouts=step.settings.num_rollouts)
        assert grpo.credit(scores, grpo.plan(scores), ()) == step.algorithm.credit(scores, ResamplePlan(), ())


def test_the_random_steps_contain_what_they_are_meant_to(steps):
    """Guards the tests above against becoming vacuous."""
    seen: collections.Counter[str] = collections.Counter()
    for step in steps:
        per_question = collections.Counter(source.question_id for source in step.plan.sources)
        alive = [row for row in step.rollouts if row.status is not RolloutStatus.LOST]
        triggered = oracle.select([oracle_row(r) for r in alive], oracle.Setting(1, 1, 1, "1000000", 2, 3, 4))
        confidences = [source.confidence for source in step.plan.sources]
        arrived = {r.prefix.source_rollout_id for r in step.continuations if r.status is not RolloutStatus.LOST}
        seen["short budget"] += len(triggered) > len(step.plan.sources) > 0
        seen["two sources in a group"] += max(per_question.values(), default=0) >= 2
        seen["two questions triggered"] += len(per_question) >= 2
        seen["tied confidence"] += len(confidences) > len(set(confidences))
        seen["lost rollout"] += len(alive) < len(step.rollouts)
        seen["lost continuation"] += any(r.status is RolloutStatus.LOST for r in step.continuations)
        seen["source that lost all continuations"] += len(arrived) < len(step.plan.sources)
        seen["recovered"] += any(r.reward for r in step.continuations)
        seen["malformed source"] += any(
            row.turns[0].tool_call.error for row in alive if row.rollout_id in {s.rollout_id for s in step.plan.sources}
        )
        seen["look-alike call"] += any(
            random_steps.TOOL_CALL in row.turns[0].completion.token_ids and not row.uses_tool for row in alive
        )
        seen["several turns"] += any(len(row.turns) == random_steps.MAX_TURNS for row in alive)
    assert {name: count for name, count in seen.items() if count < NUM_CASES // 20} == {}, seen
