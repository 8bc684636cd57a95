"""Wall time of a step's rollouts under three schedules, over the bound that no schedule can beat.

    python benchmarks/scheduling.py --output benchmarks/results/scheduling.json

The agent, the producer and AXPO are the real ones; the engine is a fake that decodes every running request at the same
fixed rate, the tool a sleep. Lengths and tool latencies are lognormal, drawn from each request's own seed, so that every
schedule runs the same rows. Time is simulated (an event loop whose clock jumps to the next timer): the figures are those of
the schedule alone and the same on every machine.

    eager      continuations start when their place in the plan is certain (rollouts/eager.py)
    barrier    all rollouts, then the plan, then all continuations; turns flow freely
    lock-step  besides, every turn waits for the longest completion of its round and for the tools, as a loop around a
               batched ``generate`` does (TRL's tool loop)

Requests are admitted first come, first served. Bound: the larger of (tokens / rate / slots) and the longest chain, where a continuation begins when the rollouts of its
question are done.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import selectors
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from environment import argument_parser, write_result

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.confidence import rollout_scores
from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.samples import cut_prefix
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.rewards.base import VerifierRegistry
from nemo_axpo.rewards.exact_match import ExactMatch
from nemo_axpo.rollouts.agent import Agent, RolloutJob
from nemo_axpo.rollouts.eager import EagerResampling
from nemo_axpo.rollouts.limits import RolloutLimits
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.rollouts.seeds import derive_seed
from nemo_axpo.tools.executor import ToolExecutor
from nemo_axpo.tools.registry import ToolRegistry
from nemo_axpo.types import Completion, GenerationRequest, Message, Question, Rollout, TextPart, ToolResult
from nemo_axpo.world.tokenizer import build_tokenizer

NUM_QUESTIONS, NUM_ROLLOUTS, NUM_CONTINUATIONS, RESAMPLE_RATIO = 64, 8, 4, 0.25
TOKENS_PER_S = 50.0
MAX_TOKENS = 8192
THINKING, CALL, ANSWER = (1200, 0.7), (60, 0.3), (300, 0.6)
"""Median and sigma, in tokens, of the thinking, of what follows ``<tool_call>``, and of a turn after an observation."""
TOOL = (1.0, 1.0)
"""Median and sigma of a call, in seconds."""
TOOL_USE, HARD, RIGHT = 0.6, 0.4, 0.5
"""Share of tool calls; of questions that a tool call rarely gets right; of right answers to the others."""
Schedule = Callable[["Setting"], Awaitable[Sequence[Rollout]]]


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: tells the loop how long it would have."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        assert ready or timeout is not None, "everybody waits for somebody else"
        self.waited_s += 0 if ready else timeout
        return ready


class SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._jumps = _JumpingSelector()
        super().__init__(self._jumps)

    def time(self) -> float:
        """Simulated seconds since the loop was made."""
        return self._jumps.waited_s


def simulate(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
    """The result of a coroutine and the simulated seconds it took."""
    loop = SimulatedTime()
    try:
        return loop.run_until_complete(coroutine), loop.time()
    finally:
        loop.close()


def lognormal(rng: random.Random, median: float, sigma: float) -> float:
    """A draw."""
    return median * math.exp(rng.gauss(0.0, sigma))


class WaitTool:
    """A tool that takes as long as the call says; its own session, as it has no state."""

    name = "wait"

    @property
    def schema(self) -> dict[str, Any]:
        """One argument."""
        parameters = {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]}
        return {"type": "function", "function": {"name": self.name, "description": "waits", "parameters": parameters}}

    def open(self, images: Sequence[str]) -> WaitTool:
        """Itself."""
        return self

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        """Sleeps."""
        await asyncio.sleep(arguments["seconds"])
        return ToolResult("done")

    async def close(self) -> None:
        """Nothing to free."""


class FixedRateEngine:
    """Decodes up to ``slots`` requests at once, each at ``TOKENS_PER_S``; what it replies hangs on the seed alone."""

    policy_version = 0

    def __init__(self, tokenizer: Any, *, slots: int) -> None:
        self._tokenizer, self._slots = tokenizer, asyncio.Semaphore(slots)
        self._tool_call = tokenizer.convert_tokens_to_ids("<tool_call>")
        self.num_tokens = 0

    async def generate(self, request: GenerationRequest) -> Completion:
        """A short text after the time that a long one takes."""
        text, num_tokens = self._reply(request)
        async with self._slots:
            await asyncio.sleep(num_tokens / TOKENS_PER_S)
        self.num_tokens += num_tokens
        ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        return Completion(ids, (-0.5,) * len(ids), "stop", self.policy_version)

    def _reply(self, request: GenerationRequest) -> tuple[str, int]:
        rng = random.Random(request.seed)
        rollout, turn = request.request_id.rsplit("/t", 1)
        call = f'\n{{"name": "wait", "arguments": {{"seconds": {lognormal(rng, *TOOL):.3f}}}}}\n</tool_call><|im_end|>'
        is_continuation = request.prompt.token_ids[-1] == self._tool_call
        if turn == "0" and is_continuation:
            return call, _length(rng, *CALL)
        if turn == "0" and rng.random() < TOOL_USE:
            return f"thinking\n</think>\n\n<tool_call>{call}", _length(rng, *THINKING) + _length(rng, *CALL)
        is_hard = random.Random(rollout.split("/")[0]).random() < HARD
        is_right = rng.random() < (0.05 if is_hard and turn != "0" else RIGHT)
        median, sigma = THINKING if turn == "0" else ANSWER
        text = f"thinking\n</think>\n\n<answer>\n\\boxed{{{'red' if is_right else 'blue'}}}\n</answer><|im_end|>"
        return text, _length(rng, median, sigma)

    def load_weights(self, named_tensors: Iterable[tuple[str, object]], *, policy_version: int) -> None:
        """No weights."""

    async def close(self) -> None:
        """Nothing to free."""


def _length(rng: random.Random, median: float, sigma: float) -> int:
    return min(MAX_TOKENS, max(1, round(lognormal(rng, median, sigma))))


class LockStepEngine(FixedRateEngine):
    """Waits until every live rollout asks, and gives nobody a completion before the last one is done."""

    def __init__(self, tokenizer: Any, *, slots: int) -> None:
        super().__init__(tokenizer, slots=slots)
        self.num_live = 0
        self._round: list[tuple[GenerationRequest, asyncio.Future[Completion]]] = []

    async def generate(self, request: GenerationRequest) -> Completion:
        """A place in the next round."""
        place = asyncio.get_running_loop().create_future()
        self._round.append((request, place))
        self.check()
        return await place

    def check(self) -> None:
        """Starts the round when everybody is here."""
        if self._round and len(self._round) == self.num_live:
            requests, self._round = self._round, []
            self._task = asyncio.get_running_loop().create_task(self._run(requests))

    async def _run(self, requests: Sequence[tuple[GenerationRequest, asyncio.Future[Completion]]]) -> None:
        generate = super().generate
        for (_, place), completion in zip(
            requests, await asyncio.gather(*(generate(request) for request, _ in requests)), strict=True
        ):
            place.set_result(completion)


class LockStepAgent(Agent):
    """Tells the engine how many rollouts are live: all of a phase start together."""

    async def run(self, job: RolloutJob) -> Rollout:
        """One rollout."""
        self._engine.num_live += 1
        try:
            return await super().run(job)
        finally:
            self._engine.num_live -= 1
            self._engine.check()


class Setting:
    """One step of ``NUM_QUESTIONS``: the parts that the schedules share."""

    def __init__(self, *, slots: int, seed: int, tokenizer: Any) -> None:
        self.slots, self.seed, self._tokenizer = slots, derive_seed("scheduling", seed), tokenizer
        self._images = ImageStore(tiny_image_processor())
        parts = (TextPart("colour?"),)
        names = [f"s{seed}q{number}" for number in range(NUM_QUESTIONS)]
        self.questions = [Question(name, (Message("user", parts),), "red", "world") for name in names]
        self.algorithm = Axpo(
            num_questions=NUM_QUESTIONS,
            num_rollouts=NUM_ROLLOUTS,
            num_continuations=NUM_CONTINUATIONS,
            resample_ratio=RESAMPLE_RATIO,
        )

    def producer(self, engine: Any, *, kind: type[Agent] = Agent) -> Producer:
        """Rollouts on an engine."""
        registry = ToolRegistry([WaitTool()])
        renderer = ChatRenderer(self._tokenizer, self._images, tool_schemas=registry.schemas)
        limits = RolloutLimits(max_new_tokens=4096, max_row_tokens=8192, max_time_s=1e9)
        agent = kind(engine, renderer=renderer, tools=ToolExecutor(registry, timeout_s=1e6), limits=limits)
        return Producer(agent, verifiers=VerifierRegistry({"world": ExactMatch()}))

    def engine(self, kind: type[FixedRateEngine] = FixedRateEngine, *, slots: int | None = None) -> FixedRateEngine:
        """A fresh engine."""
        return kind(self._tokenizer, slots=slots or self.slots)


async def eager(setting: Setting) -> Sequence[Rollout]:
    """As the training loop does it."""
    sampling = EagerResampling(
        setting.producer(setting.engine()),
        setting.questions,
        algorithm=setting.algorithm,
        num_elsewhere=0,
        seed=setting.seed,
    )
    rollouts = await sampling.roll_out()
    plan = setting.algorithm.plan(rollout_scores(rollouts))
    return *rollouts, *await sampling.continue_sources(plan)


async def barrier(setting: Setting) -> Sequence[Rollout]:
    """Plan and continuations after the last rollout."""
    return await _two_phases(setting, producer=setting.producer(setting.engine()))


async def lock_step(setting: Setting) -> Sequence[Rollout]:
    """Every turn in rounds."""
    return await _two_phases(setting, producer=setting.producer(setting.engine(LockStepEngine), kind=LockStepAgent))


async def _two_phases(setting: Setting, *, producer: Producer) -> Sequence[Rollout]:
    rollouts = await producer.run_rollouts(setting.questions, num_rollouts=NUM_ROLLOUTS, seed=setting.seed)
    plan = setting.algorithm.plan(rollout_scores(rollouts))
    by_id = {rollout.rollout_id: rollout for rollout in rollouts}
    prefixes = [cut_prefix(by_id[source.rollout_id], confidence=source.confidence) for source in plan.sources]
    continuations = await producer.resample(
        prefixes, questions=setting.questions, num_continuations=NUM_CONTINUATIONS, seed=setting.seed
    )
    return *rollouts, *continuations


def lower_bound_s(setting: Setting) -> dict[str, float]:
    """Of the whole step: work over slots, and the longest chain of rollouts and continuations with a slot for each."""
    engine = setting.engine(slots=10**9)
    producer = setting.producer(engine)
    ends: dict[str, float] = {}

    async def rollouts_alone() -> Sequence[Rollout]:
        def finished(question_id: str, rollout: Rollout | None) -> None:
            ends[question_id] = asyncio.get_running_loop().time()

        return await producer.run_rollouts(
            setting.questions, num_rollouts=NUM_ROLLOUTS, seed=setting.seed, on_finished=finished
        )

    rollouts, longest = simulate(rollouts_alone())
    plan = setting.algorithm.plan(rollout_scores(rollouts))
    by_id = {rollout.rollout_id: rollout for rollout in rollouts}
    questions = {question.question_id: question for question in setting.questions}
    for source in plan.sources:
        prefix = cut_prefix(by_id[source.rollout_id], confidence=source.confidence)
        continuation = producer.continue_prefix(
            prefix,
            question=questions[source.question_id],
            num_continuations=NUM_CONTINUATIONS,
            seed=setting.seed,
        )
        longest = max(longest, ends[source.question_id] + simulate(continuation)[1])
    work = engine.num_tokens / TOKENS_PER_S / setting.slots
    return {"work_s": work, "chain_s": longest, "bound_s": max(work, longest)}


def content(rows: Sequence[Rollout]) -> list[tuple[Any, ...]]:
    """What must be the same under every schedule."""
    return [(row.rollout_id, row.token_ids, row.status, row.reward) for row in rows]


def measure(*, slots: int, seeds: Sequence[int], tokenizer: Any) -> dict[str, Any]:
    """Medians over the seeds of each schedule's time over the bound."""
    schedules: dict[str, Schedule] = {"eager": eager, "barrier": barrier, "lock_step": lock_step}
    ratios: dict[str, list[float]] = {name: [] for name in schedules}
    bounds = []
    for seed in seeds:
        setting = Setting(slots=slots, seed=seed, tokenizer=tokenizer)
        bound = lower_bound_s(setting)
        bounds.append(bound)
        rows = {}
        for name, schedule in schedules.items():
            rows[name], seconds = simulate(schedule(setting))
            ratios[name].append(seconds / bound["bound_s"])
        assert content(rows["eager"]) == content(rows["barrier"]) == content(rows["lock_step"])
    return {
        "slots": slots,
        **{key: round(statistics.median(bound[key] for bound in bounds), 1) for key in bounds[0]},
        "time_over_bound": {
            name: {
                "median": round(statistics.median(values), 3),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
            }
            for name, values in ratios.items()
        },
    }


def main() -> None:
    """Measures every number of slots."""
    parser = argument_parser(__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128, 256, 640])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    tokenizer = build_tokenizer()
    results = []
    for slots in options.slots:
        results.append(measure(slots=slots, seeds=options.seeds, tokenizer=tokenizer))
        print(json.dumps(results[-1]), flush=True)
    write_result(options.output, {"rollouts": NUM_QUESTIONS * NUM_ROLLOUTS, "results": results})


if __name__ == "__main__":
    main()
