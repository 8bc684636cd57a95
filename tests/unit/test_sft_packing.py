"""Supervised rows of very different lengths, one a question: what packing wastes, and that nothing is trained twice or left out."""

from __future__ import annotations

import random

import pytest

from nemo_axpo.actors.microbatches import plan_microbatches
from nemo_axpo.actors.packing import VisionTokens, pack_rows
from nemo_axpo.data.trajectories import Trajectory, TrajectoryTurn

MAX_TOKENS = 8192
VISION = VisionTokens(image_token_id=-1, video_token_id=-1, merge_size=2)


def rows(count):
    """Two turns each, lengths lognormal with a long tail, at most 5,000 tokens."""
    rng = random.Random(0)
    found = []
    for number in range(count):
        first, second = (min(int(rng.lognormvariate(6.4, 0.8)) + 1, 2400) for _ in range(2))
        prompt, observation = (tuple(rng.choices(range(10, 500), k=size)) for size in (120, 60))
        turns = (
            TrajectoryTurn(prompt, (), tuple(rng.choices(range(10, 500), k=first))),
            TrajectoryTurn(observation, (), tuple(rng.choices(range(10, 500), k=second))),
        )
        found.append(Trajectory(f"t{number}", f"q{number}", "s", "a", turns))
    return found


@pytest.mark.parametrize(("form", "most"), [("thd", 0.005), ("padded", 0.05)])
def test_little_is_padded_and_every_model_token_is_trained_once(form, most):
    trajectories = rows(96)
    samples = [trajectory.to_sample() for trajectory in trajectories]
    plan = plan_microbatches(samples, max_tokens=MAX_TOKENS, form=form, image_token_id=-1)
    assert sorted(index for part in plan for index in part) == list(range(96))
    packed = slots = trained = 0
    for part in plan:
        _, found = pack_rows(
            [samples[index] for index in part], image_store=None, vision=VISION, form=form, multiple_of=8
        )
        packed, slots = packed + found.counts.num_packed_tokens, slots + found.counts.num_slots
        trained += int(found.mask_BS.sum())
    assert 1 - packed / slots <= most
    assert trained == sum(len(turn.token_ids) for trajectory in trajectories for turn in trajectory.turns)
