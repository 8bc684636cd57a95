"""Synthetic run directories: trees from the real records, algorithms and samples; curves from a seeded sketch."""

from __future__ import annotations

import json
import math
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.confidence import resample_scores, rollout_scores
from nemo_axpo.algorithms.grpo import Grpo
from nemo_axpo.config.load import save_config, validate_config
from nemo_axpo.data.samples import build_samples, cut_prefix
from nemo_axpo.report.model_view import view_id
from nemo_axpo.report.tree_records import TreeRecord, tree_record
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.types import (
    Completion,
    ImagePart,
    Message,
    Question,
    RenderedTokens,
    ResamplePlan,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    TextPart,
    ToolCall,
    Turn,
)

COLOURS = {
    "red": (230, 30, 30),
    "green": (20, 200, 60),
    "blue": (40, 80, 255),
    "yellow": (255, 230, 0),
    "cyan": (0, 230, 240),
}
NUM_ROWS, NUM_COLUMNS, TILE = 2, 3, 64
_PIECES = re.compile(r"<\|[a-z_]+\|>|</?[a-z_]+>|\w+|\s+|.", re.DOTALL)


class Words:
    """Text ⇄ ids over pieces as large as words, special tokens single ids."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._ids.setdefault(piece, len(self._ids)) for piece in _PIECES.findall(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        pieces = list(self._ids)
        return "".join(pieces[i] for i in token_ids)


class TreeMaker:
    """Groups as a tool-shy policy would produce them, over a picture of tiles with one dot each."""

    def __init__(self, run_dir: Path, *, seed: int = 0) -> None:
        self.run, self.words, self.rng = RunDirectory(run_dir), Words(), random.Random(seed)
        (run_dir / "images").mkdir(parents=True, exist_ok=True)

    def tree(
        self, *, step: int, algorithm: str = "axpo", outcomes: str = "dDdtddtd", resampled: str = "KkKk"
    ) -> TreeRecord:
        """``outcomes``: d direct, t with the tool; ``resampled``: k a continuation. Capitals are right."""
        scene = self._scene(f"train-0-{step}")
        group = self._group(scene, outcomes)
        scores = rollout_scores(group.rollouts)
        maker = (
            Axpo(num_questions=2, num_rollouts=len(outcomes), num_continuations=len(resampled), resample_ratio=0.25)
            if algorithm == "axpo"
            else Grpo(num_questions=2, num_rollouts=len(outcomes))
        )
        plan = maker.plan(scores)
        plan = ResamplePlan(plan.sources[:1], plan.num_continuations)
        continuations = tuple(
            self._continuation(scene, group, source.rollout_id, k, is_right=kind == "K", confidence=source.confidence)
            for source in plan.sources
            for k, kind in enumerate(resampled)
        )
        credits = maker.credit(scores, plan, resample_scores(continuations))
        samples = build_samples((*group.rollouts, *continuations), credits=credits, temperature=1.0)
        return tree_record(
            group, step=step, plan=plan, continuations=continuations, samples=samples, decode=self.words.decode
        )

    def group(self, question_id: str, outcomes: str) -> RolloutGroup:
        return self._group(self._scene(question_id), outcomes)

    def _group(self, scene: Scene, outcomes: str) -> RolloutGroup:
        return RolloutGroup(scene.question, tuple(self._rollout(scene, n, kind) for n, kind in enumerate(outcomes)))

    def _scene(self, question_id: str) -> Scene:
        scene = Scene(self, question_id)
        scene.save()
        return scene

    def _completion(self, text: str) -> Completion:
        ids = self.words.encode(text)
        return Completion(ids, tuple(-self.rng.expovariate(1.2) for _ in ids), "stop", 0)

    def _rollout(self, scene: Scene, n: int, kind: str) -> Rollout:
        name, is_right = f"{scene.question.question_id}/{n}", kind.isupper()
        answer = scene.answer if is_right else self.rng.choice([c for c in COLOURS if c != scene.answer])
        thought = self.rng.choice(["let me look", "the dots are small", "hard to see", "which tile is it"])
        if kind in "dD":
            turn = Turn(scene.prompt, self._completion(f"{thought}\n</think>\n\n{answer_text(answer)}<|im_end|>"))
            return Rollout(name, scene.question.question_id, (turn,), RolloutStatus.ANSWERED, answer, float(is_right))
        turns = self._tool_turns(scene, f"{thought}\n</think>\n\n<tool_call>", answer=answer, is_right=is_right)
        return Rollout(name, scene.question.question_id, turns, RolloutStatus.ANSWERED, answer, float(is_right))

    def _tool_turns(self, scene: Scene, opening: str, *, answer: str, is_right: bool) -> tuple[Turn, ...]:
        tile = (
            scene.tile if is_right else self.rng.choice([t for t in range(NUM_ROWS * NUM_COLUMNS) if t != scene.tile])
        )
        call = json.dumps({"name": "image_zoom_in", "arguments": {"bbox_2d": list(tile_box(tile)), "label": "dot"}})
        first = self._completion(f"{opening}\n{call}\n</tool_call><|im_end|>")
        start = len(self.words.encode(opening))
        observation = self.words.encode(
            "\n<|im_start|>user\n<tool_response>\n<|vision_start|>" + "<|image_pad|>" * 4
            + "<|vision_end|>image 1: tool\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
        )  # fmt: skip
        second = self._completion(f"now I see it\n</think>\n\n{answer_text(answer)}<|im_end|>")
        delta = RenderedTokens(observation, (scene.crop(tile),))
        return (
            Turn(scene.prompt, first, ToolCall(start, len(first.token_ids) - 1, "image_zoom_in")),
            Turn(delta, second),
        )

    def _continuation(
        self, scene: Scene, group: RolloutGroup, source_id: str, k: int, *, is_right: bool, confidence: float
    ) -> Rollout:
        source = next(rollout for rollout in group.rollouts if rollout.rollout_id == source_id)
        prefix = cut_prefix(source, confidence=confidence)
        answer = scene.answer if is_right else self.rng.choice([c for c in COLOURS if c != scene.answer])
        opening = self.words.decode(prefix.completion.token_ids)
        turns = self._tool_turns(scene, opening, answer=answer, is_right=is_right)
        status = RolloutStatus.ANSWERED
        return Rollout(f"{source_id}/k{k}", source.question_id, turns, status, answer, float(is_right), prefix)


class Scene:
    """A picture, its question and its crops, saved as a run saves them."""

    def __init__(self, maker: TreeMaker, question_id: str) -> None:
        rng = np.random.default_rng(zlib.crc32(question_id.encode()))
        self._maker, self._question_id = maker, question_id
        self.tile = int(rng.integers(NUM_ROWS * NUM_COLUMNS))
        names = [str(rng.choice(list(COLOURS))) for _ in range(NUM_ROWS * NUM_COLUMNS)]
        self.answer = names[self.tile]
        noise = rng.integers(60, 196, size=(NUM_ROWS * TILE // 4, NUM_COLUMNS * TILE // 4, 3), dtype=np.uint8)
        self.image = Image.fromarray(noise).resize((NUM_COLUMNS * TILE, NUM_ROWS * TILE), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(self.image)
        for tile, name in enumerate(names):
            x, y = (
                tile % NUM_COLUMNS * TILE + int(rng.integers(12, 46)),
                tile // NUM_COLUMNS * TILE + int(rng.integers(12, 46)),
            )
            draw.ellipse((x, y, x + 6, y + 6), fill=COLOURS[name])
        row, column = self.tile // NUM_COLUMNS + 1, self.tile % NUM_COLUMNS + 1
        text = f"Which colour is the dot in row {row}, column {column}?"
        self.question = Question(
            question_id, (Message("user", (ImagePart(self.image_id), TextPart(text))),), self.answer, "world"
        )
        self.prompt = RenderedTokens(
            maker.words.encode(
                '<|im_start|>system\n<tools>\n{"name": "image_zoom_in", "arguments": ["bbox_2d", "label"]}\n</tools>'
                "<|im_end|>\n<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 24
                + f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n<think>\n"
            ),
            (self.image_id,),
        )  # fmt: skip

    @property
    def image_id(self) -> str:
        return f"{self._question_id}-full"

    def save(self) -> None:
        self.image.save(self._maker.run.image_path(self.image_id))
        self.image.resize((48, 32), Image.Resampling.BICUBIC).save(self._maker.run.image_path(view_id(self.image_id)))

    def crop(self, tile: int) -> str:
        image_id = f"{self._question_id}-crop{tile}"
        x, y = tile % NUM_COLUMNS * TILE, tile // NUM_COLUMNS * TILE
        self.image.crop((x, y, x + TILE, y + TILE)).save(self._maker.run.image_path(image_id))
        return image_id


def tile_box(tile: int) -> tuple[int, int, int, int]:
    x, y = tile % NUM_COLUMNS, tile // NUM_COLUMNS
    return round(1000 * x / 3), round(1000 * y / 2), round(1000 * (x + 1) / 3), round(1000 * (y + 1) / 2)


def answer_text(answer: str) -> str:
    return f'<answer>\n\\boxed{{"{answer}"}}\n</answer>'


# ------------------------------------------------------------------------------------------------------------ runs
_NAMES = ("pass@1", "pass@4", "tool_use", "tool_accuracy", "direct_accuracy", "all_wrong")
START = dict(zip(_NAMES, (0.28, 0.49, 0.27, 0.24, 0.29, 0.41), strict=True))
FINAL = {
    "axpo": dict(zip(_NAMES, (0.94, 0.97, 1.0, 0.94, None, 0.03), strict=True)),
    "grpo": dict(zip(_NAMES, (0.35, 0.48, 0.0, None, 0.35, None), strict=True)),
}


def write_run(
    run_dir: Path,
    *,
    algorithm: str = "axpo",
    num_rollouts: int = 8,
    seed: int = 0,
    num_steps: int = 60,
    planned_steps: int | None = None,
    tree_steps: Sequence[int] = (),
    start: dict | None = None,
    final: dict | None = None,
) -> Path:
    """A run of ``num_steps`` of ``planned_steps``; finished where the two agree."""
    run_dir.mkdir(parents=True)
    planned, start = planned_steps or num_steps, start or START
    final = final or FINAL[algorithm]
    sections = {"algorithm": {"name": algorithm, "num_rollouts": num_rollouts}, "train": {"num_steps": planned}}
    save_config(validate_config({"seed": seed, **sections}), run_dir / "config.yaml")
    rng = random.Random(f"{algorithm}{num_rollouts}{seed}")
    rows = [
        _metrics(step, planned, algorithm=algorithm, start=start, final=final, rng=rng)
        for step in range(1, num_steps + 1)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"initial": start} | ({"final": final} if num_steps == planned else {})
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    maker = TreeMaker(run_dir, seed=seed)
    for step in tree_steps:
        trees = [
            maker.tree(step=step, algorithm=algorithm, resampled="".join(maker.rng.choice("Kk") for _ in range(4)))
        ]
        maker.run.write_groups(step, [asdict(tree) for tree in trees])
    return run_dir


def _metrics(step: int, planned: int, *, algorithm: str, start: dict, final: dict, rng: random.Random) -> dict:
    """Rates that go from start to final along a logistic curve, with noise; the tool's rates stop with the tool."""
    midpoint = 0.45 if algorithm == "axpo" else 0.2
    progress = 1 / (1 + math.exp(-12 * (step / planned - midpoint)))

    def rate(name: str, noise: float) -> float:
        before, after = start[name], final[name] if final[name] is not None else start[name]
        return min(1.0, max(0.0, before + (after - before) * progress + rng.gauss(0, noise)))

    tool_use = rate("tool_use", 0.03)
    values = {
        "accuracy": rate("pass@1", 0.05),
        "tool_use": tool_use,
        "num_rollouts": 128,
        "tokens": 41.5,
        "truncated": 0.0,
    }
    if tool_use > 0.01:
        values |= {"tool_accuracy": rate("tool_accuracy", 0.08), "all_wrong": rate("all_wrong", 0.09)}
        values["all_wrong_after"] = values["all_wrong"] * (0.8 if algorithm == "axpo" else 1.0)
    if algorithm == "axpo":
        values |= {"recovery": min(1.0, 0.12 + 0.5 * progress), "num_resamples": 32}
    row = {"step": step, **{f"rollout/{name}": value for name, value in values.items()}}
    row |= {"update/loss": rng.gauss(0, 0.05), "update/grad_norm": 0.4 + rng.random() / 5, "update/kl": 0.2 * progress}
    row |= {"engine/logprob_diff_mean": 2e-7 * (1 + rng.random()), "time/step_s": 1.9, "memory/peak_gib": 1.4}
    if step % (planned // 6 or 1) == 0:
        row |= {f"eval/{name}": rate(name, 0.02) for name in ("pass@1", "pass@4", "tool_use")}
    return row


def write_study(root: Path, *, seeds: Sequence[int] = (10,), num_steps: int = 60) -> Path:
    """GRPO with N = 8 and N = 10 and AXPO, for each seed, and the warm starts beside them."""
    for seed in seeds:
        parent = root / f"seed_{seed}" if len(seeds) > 1 else root
        shift = random.Random(seed).gauss(0, 0.03)
        start = {name: value + shift for name, value in START.items()}
        final = {
            n: None if v is None else min(1.0, max(0.0, v - abs(3 * shift) * (0 < v < 1)))
            for n, v in FINAL["axpo"].items()
        }
        (parent / "warm_start").mkdir(parents=True)
        (parent / "warm_start" / "metrics.jsonl").write_text('{"step": 1, "update/loss": 2.0}\n')
        for name, n in (("grpo_n8", 8), ("grpo_n10", 10)):
            write_run(parent / name, algorithm="grpo", num_rollouts=n, seed=seed, num_steps=num_steps, start=start)
        write_run(parent / "axpo", seed=seed, num_steps=num_steps, tree_steps=(10, 20, 30), start=start, final=final)
    return root
