"""One of several gloo ranks: random steps whose rollouts and continuations lie on random ranks.

gather_worker.py RANK WORLD_SIZE STORE_FILE OUTPUT_FILE
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.types import ResampleScore, RolloutScore, TrainingSample

NUM_STEPS = 60
SHAPES = ((6, 4, 2, 0.5), (4, 8, 4, 0.25), (9, 3, 2, 0.3))
"""B, N, K, r."""


def axpo(number: int) -> Axpo:
    """The algorithm of random step ``number``."""
    b, n, k, r = SHAPES[number % len(SHAPES)]
    return Axpo(num_questions=b, num_rollouts=n, num_continuations=k, resample_ratio=r)


def random_scores(rng: random.Random, *, algorithm: Axpo) -> list[RolloutScore]:
    """Rollouts of a step, a few of them lost, many questions all wrong; some confidences tie."""
    scores = []
    for question in range(algorithm.num_questions):
        is_hard = rng.random() < 0.6
        for n in range(algorithm.num_rollouts):
            if rng.random() < 0.1:
                continue
            uses_tool = rng.random() < 0.5
            reward = float(rng.random() < (0.1 if is_hard and uses_tool else 0.5))
            confidence = rng.choice([rng.random(), 0.25]) if uses_tool else float("nan")
            scores.append(RolloutScore(f"q{question}", f"q{question}/{n}", reward, uses_tool, confidence))
    return scores


def random_resamples(rng: random.Random, *, plan) -> list[ResampleScore]:
    """Continuations of the plan, some of them lost."""
    ids = [(s.rollout_id, f"{s.rollout_id}/k{k}") for s in plan.sources for k in range(plan.num_continuations)]
    return [ResampleScore(source, own, float(rng.random() < 0.4)) for source, own in ids if rng.random() > 0.15]


def run_step(number: int, *, replicas, rank: int, world_size: int) -> dict:
    """What rank ``rank`` knows after a step: plan and credits, floats as hexadecimal."""
    shared, placing = random.Random(number), random.Random(f"places {number}")
    algorithm = axpo(number)

    def here(records):
        return [record for record in records if placing.randrange(world_size) == rank]

    scores = replicas.gather(here(random_scores(shared, algorithm=algorithm)), kind=RolloutScore)
    plan = algorithm.plan(scores)
    resamples = replicas.gather(here(random_resamples(shared, plan=plan)), kind=ResampleScore)
    credits = algorithm.credit(scores, plan, resamples)
    return {
        "sources": [(source.rollout_id, float(source.confidence).hex()) for source in plan.sources],
        "credits": [(credit.rollout_id, credit.part, credit.advantage.hex()) for credit in credits],
    }


class Images:
    """Pictures by content."""

    def __init__(self) -> None:
        self.pictures: dict[str, Image.Image] = {}

    def add(self, image: Image.Image) -> str:
        name = f"{image.size}-{sum(image.tobytes())}"
        self.pictures[name] = image
        return name

    def image(self, image_id: str) -> Image.Image:
        return self.pictures[image_id]


def sample(number: int, *, images: Images) -> TrainingSample:
    """Row ``number``; rows 0, 3, 6, … show a picture, two rows the same one."""
    image_ids = ()
    if number % 3 == 0:
        pixels = np.full((4, 5, 3), number // 6, dtype=np.uint8)
        image_ids = (images.add(Image.fromarray(pixels)),)
    length = 3 + number
    floats = tuple(np.float32(0.1 * number) * np.arange(length, dtype=np.float32))
    mask = tuple(t > 1 for t in range(length))
    return TrainingSample(
        f"r{number:02}", "q", tuple(range(length)), mask, tuple(map(float, floats)), tuple(-float(x) for x in floats),
        image_ids, policy_version=number, temperature=0.9,
    )  # fmt: skip


def moved(replicas, *, num_leaders: int) -> dict:
    """Rows of all leaders spread at random: what arrives here, and which pictures came along."""
    own, everything = Images(), Images()
    placing = random.Random("rows")
    rows = [sample(number, images=everything) for number in range(12)]
    sampled_on = {row.rollout_id: placing.randrange(num_leaders) for row in rows}
    replica_of = {row.rollout_id: placing.randrange(num_leaders) for row in rows if row.rollout_id != "r05"}
    mine = [n for n, row in enumerate(rows) if replicas.is_leader and sampled_on[row.rollout_id] == replicas.index]
    arrived = replicas.move([sample(n, images=own) for n in mine], replica_of=replica_of, image_store=own)
    expected = [row for row in rows if replica_of.get(row.rollout_id) == replicas.index]
    shown = {image_id for row in expected for image_id in row.image_ids}
    same_pixels = all(own.image(name).tobytes() == everything.image(name).tobytes() for name in shown)
    return {"arrived": [row.rollout_id for row in arrived], "is_equal": list(arrived) == expected and same_pixels}


def main() -> None:
    """All steps on one rank, then the moves, with every rank a replica and with two ranks a replica."""
    rank, world_size, store, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    import torch.distributed as dist

    from nemo_axpo.distributed.process_replicas import ProcessReplicas

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    replicas = ProcessReplicas([[number] for number in range(world_size)])
    steps = [run_step(n, replicas=replicas, rank=rank, world_size=world_size) for n in range(NUM_STEPS)]
    sent = replicas.take_num_bytes()
    pairs = ProcessReplicas([[number, number + world_size // 2] for number in range(world_size // 2)])
    moves = [moved(replicas, num_leaders=world_size), moved(pairs, num_leaders=world_size // 2)]
    output.write_text(json.dumps({"steps": steps, "sent": sent, "moves": moves}))
    dist.destroy_process_group()


def alone() -> list[dict]:
    """The same steps in one process."""
    return [run_step(number, replicas=OneProcess(), rank=0, world_size=1) for number in range(NUM_STEPS)]


if __name__ == "__main__":
    main()
