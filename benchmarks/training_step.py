"""CPU seconds of one optimizer step: the actor against a plain transformers + AdamW step on the same model and batch.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py --output benchmarks/results/training_step.json

Loads, with the quickstart's own model and rows: a GRPO step (16 questions × 10 rollouts; a question's rows share its
prompt), the same where every row calls the tool (longer rows, two images), and a warm-start step (64 fresh rows, which
share the system turn alone). The peer pads the rows, runs the vision tower on every row's images and the output layer
on every position, as a plain loop does; both compute the same loss, clip the gradient and step AdamW.
"""

from __future__ import annotations

import inspect
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from environment import argument_parser, write_result
from timing import repeated
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from nemo_axpo.actors.actor import Actor
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore, load_image_processor
from nemo_axpo.data.vocabulary import banned_token_ids
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.types import ToolResult, TrainBatch, TrainingSample
from nemo_axpo.world.questions import QuestionStream, rng_for
from nemo_axpo.world.scene import SceneStyle
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer
from nemo_axpo.world.trajectories import teach

TOOL_SCHEMA = {
    "type": "function",
    "function": {"name": "image_zoom_in", "parameters": {"type": "object", "properties": {"bbox_2d": {}, "label": {}}}},
}


class World:
    """Rows of the embedded world, written by its scripted teacher."""

    def __init__(self, checkpoint: Path) -> None:
        self.images = ImageStore(load_image_processor(checkpoint))
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.renderer = ChatRenderer(tokenizer, self.images, tool_schemas=[TOOL_SCHEMA])
        self.banned = banned_token_ids(tokenizer, vocab_size=VOCAB_SIZE)

    def batch(self, num_questions: int, *, rows_per_question: int, tool_rate: float) -> TrainBatch:
        """``num_questions`` · ``rows_per_question`` rows, that share of which calls the tool."""
        rng = rng_for("benchmark")
        stream = QuestionStream("benchmark", seed=0, style=SceneStyle(), image_store=self.images)
        samples = [
            self._sample(
                stream.world_question(number), use_tool=rng.random() < tool_rate, name=f"{number}/{row}", rng=rng
            )
            for number in range(num_questions)
            for row in range(rows_per_question)
        ]
        self.images.prepare([image_id for sample in samples for image_id in sample.image_ids])
        return TrainBatch(tuple(samples), len(samples))

    def _sample(self, world_question, *, use_tool: bool, name: str, rng) -> TrainingSample:
        trajectory = teach(world_question, use_tool=use_tool, aim_rate=0.5, rng=rng)
        row = self.renderer.prompt(world_question.question)
        ids, images, mask = list(row.token_ids), list(row.image_ids), [False] * len(row.token_ids)
        for number, text in enumerate(trajectory.turns):
            if number:
                tile_row, column = trajectory.tile
                box = (column * 64, tile_row * 64, column * 64 + 64, tile_row * 64 + 64)
                crop = self.images.add(world_question.scene.image.crop(box))
                observation = self.renderer.observation(ToolResult("image 1:", (crop,)))
                ids, images = ids + list(observation.token_ids), images + list(observation.image_ids)
                mask += [False] * len(observation.token_ids)
            tokens = self.renderer.encode(text)
            ids, mask = ids + list(tokens), mask + [True] * len(tokens)
        advantages = tuple(float(trained) * (1.0 if len(name) % 2 else -0.5) for trained in mask)
        question_id = name.split("/")[0]
        return TrainingSample(name, question_id, tuple(ids), tuple(mask), advantages, (0.0,) * len(ids), tuple(images))


class PlainStep:
    """transformers' model and torch's AdamW."""

    def __init__(self, checkpoint: Path, *, world: World, lr: float) -> None:
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="sdpa").float()
        self.model.train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.01)
        self._world = world

    def update(self, batch: TrainBatch, *, loss: PolicyLoss) -> float:
        """One step; returns the loss."""
        rows = len(batch.samples)
        width = max(len(sample.token_ids) for sample in batch.samples)
        ids, mask, advantages = (
            torch.zeros(rows, width).long(),
            torch.zeros(rows, width).bool(),
            torch.zeros(rows, width),
        )
        for number, sample in enumerate(batch.samples):
            length = len(sample.token_ids)
            ids[number, :length] = torch.tensor(sample.token_ids)
            mask[number, :length] = torch.tensor(sample.loss_mask)
            advantages[number, :length] = torch.tensor(sample.advantages)
        logits = self.model(**self._inputs(ids, batch)).logits
        logits[..., list(self._world.banned)] = float("-inf")
        logprobs = torch.zeros(rows, width)
        logprobs[:, 1:] = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        value = loss(
            logprobs_BS=logprobs, old_logprobs_BS=None, ref_logprobs_BS=None, advantages_BS=advantages, mask_BS=mask,
            normalizer=loss.normalizer_of(batch),
        ).loss  # fmt: skip
        self._optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        return value.item()

    def _inputs(self, ids: torch.Tensor, batch: TrainBatch) -> dict:
        features = [self._world.images.features(i) for sample in batch.samples for i in sample.image_ids]
        inputs = {
            "input_ids": ids,
            "pixel_values": torch.cat([image.pixel_values_PD for image in features]),
            "image_grid_thw": torch.tensor([image.grid_thw for image in features]),
            "use_cache": False,
        }
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            inputs["mm_token_type_ids"] = (ids == self._world.renderer.special.image_pad).int()
        return inputs


def seconds(step: Callable[[], object], *, repeats: int) -> float:
    """Median CPU seconds after one warm-up: on one thread the wall time of a machine that runs nothing else."""
    step()
    return statistics.median(call.cpu_s for call in repeated(step, repeats=repeats))


def compare(actor: Actor, plain: PlainStep, batch: TrainBatch, *, repeats: int) -> dict[str, float]:
    """One load."""
    without_kl, with_kl = PolicyLoss(kl_coef=0.0), PolicyLoss()
    tokens = [len(sample.token_ids) for sample in batch.samples]
    ours = seconds(lambda: actor.update(batch, loss=without_kl), repeats=repeats)
    peer = seconds(lambda: plain.update(batch, loss=without_kl), repeats=repeats)
    return {
        "rows": len(tokens),
        "tokens": sum(tokens),
        "longest_row": max(tokens),
        "loss_tokens": batch.num_loss_tokens,
        "actor_s": ours,
        "actor_with_kl_s": seconds(lambda: actor.update(batch, loss=with_kl), repeats=repeats),
        "actor_logprobs_s": seconds(lambda: actor.logprobs(batch.samples), repeats=repeats),
        "transformers_s": peer,
        "ratio": peer / ours,
    }


def measure(checkpoint: Path, *, repeats: int, micro_batch_tokens: int) -> dict[str, dict[str, float]]:
    """Every load."""
    world = World(checkpoint)
    loads = {"grpo": (16, 10, 0.3), "grpo_all_tool": (16, 10, 1.0), "warm_start": (64, 1, 0.275)}
    results = {}
    actor = Actor(
        checkpoint, image_store=world.images, banned_token_ids=world.banned, optimizer=AdamSettings(1e-3),
        micro_batch_tokens=micro_batch_tokens,
    )  # fmt: skip
    plain = PlainStep(checkpoint, world=world, lr=1e-3)
    for name, (questions, rows, tool_rate) in loads.items():
        batch = world.batch(questions, rows_per_question=rows, tool_rate=tool_rate)
        results[name] = compare(actor, plain, batch, repeats=repeats)
        print(name, {key: round(value, 3) for key, value in results[name].items()}, flush=True)
    return results


def main() -> None:
    """Runs the comparison and writes it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--micro-batch-tokens", type=int, default=8_192)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = save_tiny_checkpoint(directory, tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0)
        results = measure(checkpoint, repeats=arguments.repeats, micro_batch_tokens=arguments.micro_batch_tokens)
    write_result(arguments.output, {"results": results})


if __name__ == "__main__":
    main()
