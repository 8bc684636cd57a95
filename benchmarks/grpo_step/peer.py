"""TRL's side: a plain GRPOTrainer; only a row's first tokens are forced, and no turn stops."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from grpo_step.setting import (
    CLIP_GRAD,
    CLIP_HIGH,
    CLIP_LOW,
    LR,
    WEIGHT_DECAY,
    Counts,
    Questions,
    Setting,
    Stopwatch,
    digest,
    opening_text,
    zoom_function,
)
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen3VLProcessor,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, chat_template_utils

from nemo_axpo.data.images import ImageStore, load_image_processor
from nemo_axpo.data.vocabulary import SpecialTokens, banned_token_ids, load_tokenizer
from nemo_axpo.tools.image_zoom_in import pixel_box
from nemo_axpo.world.tokenizer import VOCAB_SIZE


class StillsProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without its video part, which would need torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        """Accepts the missing video part."""


class Opening(LogitsProcessor):
    """Leaves one token to a row while it has an opening."""

    def __init__(self, openings: Sequence[Sequence[int]], *, num_prompt: int) -> None:
        self._openings, self._num_prompt = openings, num_prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``[R, V]`` scores with all but the opening's token at -1e9."""
        place = input_ids.shape[1] - self._num_prompt
        rows = [row for row, opening in enumerate(self._openings) if place < len(opening)]
        if rows:
            scores[rows] = -1e9
            scores[rows, [self._openings[row][place] for row in rows]] = 0.0
        return scores


class TimedTrainer(GRPOTrainer):
    """Times and counts; what it computes is GRPOTrainer's."""

    def watch(self, setting: Setting) -> None:
        """To be called once, before ``train``."""
        self.stopwatch, self.steps = Stopwatch(), []
        self._setting, self._counted = setting, {}
        self._num_encoded = 0
        self.model.model.visual.register_forward_pre_hook(self._count_images, with_kwargs=True)
        self._generate_rows, self.model.generate = self.model.generate, self._forced_generate
        self._step_start = self.stopwatch.now()

    def finish_step(self) -> None:
        """What is not rollout is update: log-probs, backward, optimizer, and the trainer's own work around them."""
        self.stopwatch.add("step", self._step_start)
        times = self.stopwatch.take()
        times |= {f"update{unit}": times[f"step{unit}"] - times[f"rollout{unit}"] for unit in ("_s", "_cpu_s")}
        counts = Counts(rows=self._setting.num_rows, encoded_for_update=self._num_encoded, **self._counted)
        self.steps.append((times, counts))
        self._step_start = self.stopwatch.now()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        start = self.stopwatch.now()
        try:
            return super().get_batch_samples(*args, **kwargs)  # loads the questions
        finally:
            self.stopwatch.add("rollout", start)

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        start = self.stopwatch.now()
        self._num_encoded, self._counted = 0, {"sampled_tokens": 0, "tool_calls": 0}
        output = super()._generate_and_score_completions(inputs)
        self.stopwatch.add("rollout", start)
        self._counted |= {
            "row_tokens": int(output["prompt_mask"].sum() + output["completion_mask"].sum()),
            "trained_tokens": int(output["num_items_in_batch"]),
            "images": int(sum(output.get("num_images") or ())),
            "encoded_for_rollout": self._num_encoded,
        }
        self._num_encoded = 0
        return output

    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any) -> Any:
        output = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self._counted["sampled_tokens"] += sum(map(len, output[0]))
        if "prompts" in self._counted:
            self._counted["tool_calls"] += len(prompt_ids)
        else:
            self._counted["prompts"] = digest(prompt_ids)
        return output

    def _forced_generate(self, **inputs: Any) -> torch.Tensor:
        """``generate`` with openings in the first turn, and no token more than the row may keep in the second."""
        lengths = inputs["attention_mask"].sum(1)
        if "prompts" not in self._counted:
            self._openings = self._opening_ids(len(lengths))
            self._called = [row for row, opening in enumerate(self._openings) if opening]
            self._num_prompt = lengths
            processor = Opening(self._openings, num_prompt=inputs["input_ids"].shape[1])
            return self._generate_rows(**inputs, logits_processor=LogitsProcessorList([processor]))
        config = copy.deepcopy(inputs.pop("generation_config"))
        used = lengths - self._num_prompt[self._called]
        config.max_new_tokens = config.min_new_tokens = self._setting.num_new - int(used.min())
        return self._generate_rows(**inputs, generation_config=config)

    def _opening_ids(self, num_rows: int) -> list[list[int]]:
        texts = [opening_text(self._setting, number=row % self._setting.num_rollouts) for row in range(num_rows)]
        return [self._tokenizer(text, add_special_tokens=False).input_ids if text else [] for text in texts]

    def _count_images(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._num_encoded += len(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])


class _StepEnd(TrainerCallback):
    def __init__(self, trainer: TimedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.finish_step()


def alternating_reward(completions: list, **columns: Any) -> list[float]:
    """1, 0, 1, …: half of a question's rows are right, so that every row has an advantage."""
    return [float(index % 2 == 0) for index in range(len(completions))]


def run(setting: Setting, *, checkpoint: Path, output: Path, micro_batch: int) -> list[tuple[dict[str, float], Counts]]:
    """Every step's seconds and counts. ``micro_batch``: rows of one forward and backward pass."""
    tokenizer, image_processor = load_tokenizer(checkpoint), load_image_processor(checkpoint)
    tokenizer.padding_side = "left"
    # TRL knows the template by its exact text; the opened thinking is all that differs, and its parser allows for it.
    tokenizer.response_template = chat_template_utils.qwen3_template
    processor = StillsProcessor(image_processor, tokenizer, None, chat_template=tokenizer.chat_template)
    questions = Questions(setting, image_store=ImageStore(image_processor)).rows()
    trainer = TimedTrainer(
        model=AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32),
        reward_funcs=alternating_reward,
        args=_arguments(setting, tokenizer=tokenizer, output=output, micro_batch=micro_batch),
        train_dataset=_dataset(setting, questions=questions),
        processing_class=processor,
        tools=[zoom_function(_cropper([image for _, image in questions]))] if setting.mode == "tool" else None,
    )
    trainer.watch(setting)
    trainer.add_callback(_StepEnd(trainer))
    trainer.train()
    return trainer.steps


def _arguments(setting: Setting, *, tokenizer: Any, output: Path, micro_batch: int) -> GRPOConfig:
    special = SpecialTokens.from_tokenizer(tokenizer)
    never = (*banned_token_ids(tokenizer, vocab_size=VOCAB_SIZE), special.im_end, special.endoftext)
    return GRPOConfig(
        output_dir=str(output), use_cpu=True, bf16=False, fp16=False, seed=0, shuffle_dataset=False,
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=setting.num_rows // micro_batch,
        num_generations=setting.num_rollouts, max_completion_length=setting.num_new, max_steps=setting.num_steps + 1,
        temperature=1.0, beta=0.0, epsilon=CLIP_LOW, epsilon_high=CLIP_HIGH, loss_type="dapo",
        learning_rate=LR, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP_GRAD, lr_scheduler_type="constant",
        gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1000, disable_tqdm=True,
        dataloader_pin_memory=False, max_tool_calling_iterations=2 if setting.mode == "tool" else None,
        generation_kwargs={"suppress_tokens": list(never)},
    )  # fmt: skip


def _dataset(setting: Setting, *, questions: Sequence[tuple[str, Image.Image]]) -> Dataset:
    columns: dict[str, list] = {"prompt": [[{"role": "user", "content": text}] for text, _ in questions]}
    if setting.mode == "text":
        return Dataset.from_dict(columns)
    columns["image"] = [image for _, image in questions]
    return Dataset.from_dict(columns).cast_column("image", ImageColumn())


def _cropper(images: Sequence[Image.Image]) -> Any:
    """Crops one picture after the other: TRL does not tell a function which row calls it, and all are of one size."""
    turn = itertools.cycle(images)

    def crop(box: list[float]) -> Image.Image:
        image = next(turn)
        return image.crop(pixel_box(box, size=image.size, min_side=1))

    return crop
