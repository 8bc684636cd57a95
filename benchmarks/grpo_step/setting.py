"""What both sides of ``benchmarks/trl_step.py`` share: questions, chat template, tool, forced calls, records."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from nemo_axpo.data.images import ImageStore
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.types import Message, Question, TextPart
from nemo_axpo.world.questions import QuestionStream
from nemo_axpo.world.scene import NUM_COLUMNS, NUM_ROWS, TILE, SceneStyle
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer
from nemo_axpo.world.trajectories import call_text

MODES = ("text", "image", "large_image", "tool")
MAX_POSITIONS = 4096
LR, WEIGHT_DECAY, CLIP_GRAD, CLIP_LOW, CLIP_HIGH = 1e-4, 0.01, 1.0, 0.2, 0.4
OBSERVATION = "image 1:"
_OPENED = "{{- '<|im_start|>assistant\\n' }}"


@dataclass(frozen=True)
class Setting:
    """One load: ``num_questions`` · ``num_rollouts`` rows a step."""

    mode: str
    """``text``; ``image``: one picture a question, of 6 tokens; ``large_image``: of 96; ``tool``: one of 6, and every
    second row calls a tool that returns another."""
    num_questions: int = 16
    num_rollouts: int = 8
    num_new: int = 64
    """Tokens of a row after its prompt, the observation included."""
    num_steps: int = 5
    """Measured ones; one more warms up."""

    @property
    def num_rows(self) -> int:
        """Rows of a step."""
        return self.num_questions * self.num_rollouts


@dataclass(frozen=True)
class Counts:
    """What one step sampled and trained; equal on both sides, but for the last two."""

    rows: int
    prompts: str
    """Digest of all prompt ids."""
    row_tokens: int
    """Prompts, sampled tokens and observations."""
    sampled_tokens: int
    trained_tokens: int
    tool_calls: int
    images: int
    """Over the rows."""
    encoded_for_rollout: int
    """Images through the vision tower."""
    encoded_for_update: int


class Stopwatch:
    """Wall and CPU seconds of named stages; a stage may have several pieces."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, stage: str, start: tuple[float, float]) -> None:
        """The time since ``start``, a value of :meth:`now`."""
        total = self.seconds.setdefault(stage, [0.0, 0.0])
        for index, (end, begin) in enumerate(zip(self.now(), start, strict=True)):
            total[index] += end - begin

    @staticmethod
    def now() -> tuple[float, float]:
        """Wall and CPU clock."""
        return time.perf_counter(), time.process_time()

    def take(self) -> dict[str, float]:
        """``<stage>_s`` and ``<stage>_cpu_s`` since the last call."""
        taken, self.seconds = self.seconds, {}
        return {
            f"{stage}{unit}": value
            for stage, values in taken.items()
            for unit, value in zip(("_s", "_cpu_s"), values, strict=True)
        }


class Questions:
    """Questions of the embedded world, drawn beforehand; in text mode without their picture."""

    def __init__(self, setting: Setting, *, image_store: ImageStore) -> None:
        self._store = image_store
        stream = QuestionStream("trl_step", seed=0, style=SceneStyle(), image_store=image_store)
        drawn = [stream.world_question(number) for number in range(setting.num_questions * (setting.num_steps + 1))]
        self._images = [world.scene.image for world in drawn]
        self._questions = [_without_image(w.question) if setting.mode == "text" else w.question for w in drawn]

    def take(self, start: int, count: int) -> Sequence[Question]:
        """Questions ``start`` to ``start + count``, their images stored."""
        for image in self._images[start : start + count]:
            self._store.add(image)
        return self._questions[start : start + count]

    def rows(self) -> list[tuple[str, Image.Image]]:
        """Text and picture of every question."""
        texts = ["".join(p.text for p in q.messages[0].parts if isinstance(p, TextPart)) for q in self._questions]
        return list(zip(texts, self._images, strict=True))


def _without_image(question: Question) -> Question:
    texts = tuple(part for part in question.messages[0].parts if isinstance(part, TextPart))
    return Question(question.question_id, (Message("user", texts),), question.answer, question.source)


def zoom_function(crop: Callable[[list[float]], Image.Image] | None = None) -> Callable[..., list]:
    """The tool as TRL takes it; its schema, which transformers reads from the docstring, is that of both sides."""

    def image_zoom_in(bbox_2d: list[float], label: str) -> list:
        """Zooms in on a region of an image and returns the enlarged crop as a new image.

        Args:
            bbox_2d: Region as [x1, y1, x2, y2], relative to the image from 0 to 1000.
            label: What the region shows.
        """
        return [{"type": "image", "image": crop(bbox_2d)}, {"type": "text", "text": OBSERVATION}]

    return image_zoom_in


def opening_text(setting: Setting, *, number: int) -> str:
    """What row ``number`` of a question is made to say in its first turn; empty where it is free.

    Every second row calls the tool, each on another tile.
    """
    if setting.mode != "tool" or number % 2:
        return ""
    row, column = divmod(number // 2 % (NUM_ROWS * NUM_COLUMNS), NUM_COLUMNS)
    return f"\n</think>\n\n{call_text(row=row, column=column)}<|im_end|>"


def save_checkpoint(path: Path, *, template: str, mode: str) -> None:
    """The tiny model with ``template``, its thinking opened as the templates of Qwen's thinking models do.

    In mode ``large_image`` its image processor leaves the world's pictures as they are.
    """
    tokenizer = build_tokenizer()
    before, found, after = template.rpartition(_OPENED)
    assert found, "the template must end with a plain generation prompt"
    tokenizer.chat_template = before + _OPENED.replace("assistant\\n", "assistant\\n<think>\\n") + after
    save_tiny_checkpoint(path, tokenizer=tokenizer, vocab_size=VOCAB_SIZE, seed=0)
    # Rotary positions: no weight depends on how many there are.
    _set(path / "config.json", section="text_config", key="max_position_embeddings", value=MAX_POSITIONS)
    if mode == "large_image":
        pixels = NUM_ROWS * TILE * NUM_COLUMNS * TILE
        _set(path / "preprocessor_config.json", section="size", key="longest_edge", value=pixels)


def _set(path: Path, *, section: str, key: str, value: int) -> None:
    content = json.loads(path.read_text())
    content[section][key] = value
    path.write_text(json.dumps(content))


def digest(prompts: Sequence[Sequence[int]]) -> str:
    """Of prompt ids, in any order of the rows."""
    return hashlib.sha256(repr(sorted(map(list, prompts))).encode()).hexdigest()[:16]


def best_step(steps: Sequence[tuple[dict[str, float], Counts]]) -> dict[str, object]:
    """The step with the least CPU time, the first one, which warms up, left out; and the counts of all."""
    times = min((times for times, _ in steps[1:]), key=lambda times: times["step_cpu_s"])
    return {"seconds": times, "counts": [asdict(counts) for _, counts in steps[1:]]}
