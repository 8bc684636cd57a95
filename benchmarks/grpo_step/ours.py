"""Our side: the training loop, engine, agent and actor; only a row's first tokens are forced, and no turn stops."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_step.setting import (
    CLIP_GRAD,
    CLIP_HIGH,
    CLIP_LOW,
    LR,
    OBSERVATION,
    WEIGHT_DECAY,
    Counts,
    Questions,
    Setting,
    Stopwatch,
    digest,
    opening_text,
    zoom_function,
)
from transformers.utils import get_json_schema

from nemo_axpo import assembly
from nemo_axpo.config.load import load_config
from nemo_axpo.config.schema import Config
from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.engines.hf.engine import HfEngine
from nemo_axpo.engines.hf.requests import ActiveRequest
from nemo_axpo.loop import LoopSettings, Step, TrainingLoop
from nemo_axpo.rollouts.agent import Agent
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.tools.image_zoom_in import ImageZoomIn
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.types import Completion, GenerationRequest, Question

MAX_ROW_TOKENS = 1024


class ForcedEngine(HfEngine):
    """The embedded engine, which samples every token but keeps a given one in its place while a row has an opening.

    No stop token is sampled, so that a row is as long as its budget; an opening may end with one.
    """

    def __init__(self, bench: assembly.Workbench, *, setting: Setting) -> None:
        super().__init__(
            bench.hf_config,
            image_store=bench.images,
            stop_token_ids=bench.renderer.stop_token_ids,
            banned_token_ids=(*bench.banned_token_ids, *bench.renderer.stop_token_ids),
            max_num_seqs=setting.num_rows,
            max_model_len=MAX_ROW_TOKENS,
        )
        self._setting, self._renderer = setting, bench.renderer
        self._num_prompt: dict[str, int] = {}
        self._opening: tuple[int, ...] = ()
        self._openings: dict[ActiveRequest, tuple[int, ...]] = {}
        self._read_request, self._reader.read = self._reader.read, self._read
        self._decode_batch, self._scheduler._decode = self._scheduler._decode, self._decode

    async def generate(self, request: GenerationRequest) -> Completion:
        """One completion that fills the row's budget."""
        rollout_id, _, turn = request.request_id.rpartition("/t")
        num_tokens, is_first = len(request.prompt.token_ids), turn == "0"
        if is_first:
            self._num_prompt[rollout_id] = num_tokens
        room = self._setting.num_new - (num_tokens - self._num_prompt[rollout_id])
        number = int(rollout_id.rpartition("/")[2])
        self._opening = self._renderer.encode(opening_text(self._setting, number=number)) if is_first else ()
        return await super().generate(replace(request, sampling=replace(request.sampling, max_new_tokens=room)))

    def _read(self, request: GenerationRequest) -> ActiveRequest:
        active = self._read_request(request)
        if self._opening:
            self._openings[active] = self._opening
        return active

    def _decode(self, batch: Any) -> tuple[list[int], list[float]]:
        tokens, logprobs = self._decode_batch(batch)
        for index, request in enumerate(self._scheduler.requests if self._openings else ()):
            opening, place = self._openings.get(request, ()), len(request.logprobs)
            if request.row is not None and place < len(opening):
                tokens[index] = batch.tokens_R[index] = opening[place]
            if place + 1 >= len(opening):
                self._openings.pop(request, None)
        return tokens, logprobs


class AlternatingReward:
    """Stands where the verifiers do: half of a question's rows are right, so that every row has an advantage."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    async def reward(self, question: Question, answer: str | None) -> float:
        """1, 0, 1, …"""
        self._seen[question.question_id] += 1
        return float(self._seen[question.question_id] % 2)


class Ours:
    """The parts of a run."""

    def __init__(self, setting: Setting, *, checkpoint: Path) -> None:
        config = _config(setting, checkpoint=checkpoint)
        self._setting = setting
        self._bench = bench = _workbench(config, setting=setting, checkpoint=checkpoint)
        self._engine = ForcedEngine(bench, setting=setting)
        actor = assembly.build_actor(
            config, bench=bench, optimizer=assembly.policy_optimizer(config), keep_reference=False
        )
        self._num_encoded = {"rollout": 0, "update": 0}
        actor._model.visual.register_forward_pre_hook(self._count_images)
        limits = RolloutLimits(max_new_tokens=setting.num_new, max_row_tokens=MAX_ROW_TOKENS)
        agent = Agent(self._engine, renderer=bench.renderer, tools=bench.tools, limits=limits)
        self._loop = TrainingLoop(
            algorithm=assembly.build_algorithm(config),
            loss=assembly.build_loss(config),
            actor=actor,
            engine=self._engine,
            producer=Producer(agent, verifiers=AlternatingReward()),
            questions=Questions(setting, image_store=bench.images),
            image_store=bench.images,
            settings=LoopSettings(seed=0, num_questions=setting.num_questions, temperature=1.0, lr=LR),
            row_cost=assembly.build_row_cost(config, bench=bench),
        )
        self._watch = Stopwatch()
        self._explore, self._loop.explore = self._loop.explore, self._timed_explore

    async def run(self) -> list[tuple[dict[str, float], Counts]]:
        """Every step's seconds and counts; what is not rollout is update: credits, optimizer, weights to the engine."""
        self._loop.sync()
        steps = []
        for index in range(self._setting.num_steps + 1):
            before, start = self._engine.statistics, self._watch.now()
            self._num_encoded["update"] = 0
            step = await self._loop.step(index)
            self._watch.add("step", start)
            times = self._watch.take()
            times |= {f"update{unit}": times[f"step{unit}"] - times[f"rollout{unit}"] for unit in ("_s", "_cpu_s")}
            encoded = self._engine.statistics.num_encoded_images - before.num_encoded_images
            sampled = self._engine.statistics.num_generated_tokens - before.num_generated_tokens
            steps.append((times, self._counts(step, encoded=encoded, sampled=sampled)))
        await self._engine.close()
        return steps

    async def _timed_explore(self, index: int) -> Any:
        start = self._watch.now()
        experience = await self._explore(index)
        self._watch.add("rollout", start)
        return experience

    def _count_images(self, module: Any, arguments: tuple[Any, ...]) -> None:
        self._num_encoded["update"] += sum(batch.patches_IPD.shape[0] for batch in arguments[0])

    def _counts(self, step: Step, *, encoded: int, sampled: int) -> Counts:
        rows = step.experience.rows
        return Counts(
            rows=len(rows),
            prompts=digest([row.turns[0].prompt_delta.token_ids for row in rows]),
            row_tokens=sum(len(row.token_ids) for row in rows),
            sampled_tokens=sampled,
            trained_tokens=sum(sum(sample.loss_mask) for sample in step.samples if any(sample.advantages)),
            tool_calls=sum(turn.tool_result is not None for row in rows for turn in row.turns),
            images=sum(len(row.image_ids) for row in rows),
            encoded_for_rollout=encoded,
            encoded_for_update=self._num_encoded["update"],
        )


def _config(setting: Setting, *, checkpoint: Path) -> Config:
    settings = {
        "model.path": str(checkpoint),
        "data.num_questions_per_step": setting.num_questions,
        "algorithm.num_rollouts": setting.num_rollouts,
        "loss.kl_coef": 0.0,
        "loss.clip_low": CLIP_LOW,
        "loss.clip_high": CLIP_HIGH,
        "optimizer.lr": LR,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "optimizer.clip_grad": CLIP_GRAD,
        "actor.num_minibatches": 1,
    }
    return load_config(["algorithm=grpo"], settings=settings)


def _workbench(config: Config, *, setting: Setting, checkpoint: Path) -> assembly.Workbench:
    """The workbench with the schema that TRL's side shows, or without a tool."""
    bench = assembly.build_workbench(config, checkpoint=checkpoint)
    tool = ImageZoomIn(bench.images, observation=OBSERVATION)
    tool.schema = get_json_schema(zoom_function())
    registry = ToolRegistry([tool] if setting.mode == "tool" else [])
    renderer = ChatRenderer(bench.renderer.tokenizer, bench.images, tool_schemas=registry.schemas)
    return replace(bench, renderer=renderer, tools=ToolExecutor(registry))
