"""The proof that an update has reached the engines: after it, engine and trainer give a few tokens the same log-probs.

    parity     mean |trainer - engine| over the tokens sampled after two fixed prompts, one of them with a picture
    moved      where the trainer's log-probs moved since the last proof, the engine does not answer exactly as it did

The prompts are the same every time, so that whatever an engine kept of them from before the update shows. The second check
finds an engine that kept its weights even where one update moves log-probs by less than the tolerance. Where a check fails
the run ends with the likeliest cause (:mod:`nemo_axpo.canaries.diagnosis`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.canaries.checks import PARITY_TOLERANCE, Check, canary_dtype, make_check, mean_difference
from nemo_axpo.canaries.diagnosis import ProbePrompts, diagnose
from nemo_axpo.canaries.probes import IMAGE, TEXT, row_ids, sample_everywhere, with_picture, without_pictures
from nemo_axpo.canaries.scoring import trainer_logprobs
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.types import SamplingParams, TrainingSample
from nemo_axpo.weight_sync.shares import server_share

NUM_TOKENS = 4
"""Per probe; a wrong cache or wrong weights show in the first."""
MOVED_LIMIT: Mapping[str, float] = {"float32": 1e-5, "bfloat16": 1e-2}
"""How far the trainer's log-prob of a token may move without the engine's; by the less exact dtype of the two."""
SAME_ANSWER = 1e-6
"""Nats within which two answers of one engine with the same weights agree."""
PARITY_KINDS = (TEXT, IMAGE)


@dataclass(frozen=True)
class Answer:
    """A row as the engine sampled and the trainer scored it."""

    row: TrainingSample
    logprobs: list[float]
    """The trainer's, ``[T]``."""


class SyncProof:
    """Compares this job's engines with the trainer, again and again; every rank calls it."""

    def __init__(
        self, config: Config, *, bench: Workbench, actor: Any, engine: Engine | None, replicas: Replicas
    ) -> None:
        """``engine``: None on ranks that do not sample; one of several servers must prove each of them."""
        self._config, self._bench, self._actor = config, bench, actor
        self._engine, self._replicas = engine, replicas
        self._dtype = canary_dtype(config.actor.dtype, config.engine.dtype)
        num_tokens = min(NUM_TOKENS, config.rollout.max_new_tokens)
        self._sampling = SamplingParams(num_tokens, temperature=config.rollout.temperature)
        self._last: dict[tuple[str, str], Answer] = {}
        """By server and kind of prompt."""

    async def __call__(self) -> float:
        """Largest mean difference of a probe, in nats, equal on every rank. CanaryError with the cause where it failed."""
        rows = await self._sample() if self._engine else {}
        logprobs = trainer_logprobs(
            tuple(rows.values()),
            ids_of=lambda replica: row_ids(_name(replica), PARITY_KINDS, num_servers=self._num_servers(replica)),
            actor=self._actor,
            replicas=self._replicas,
            image_store=self._bench.images,
        )
        answers = {key: Answer(row, logprobs[row.rollout_id]) for key, row in rows.items()}
        checks = self._replicas.gather(self._check(answers), kind=Check)
        self._last = answers
        if not all(check.passed for check in checks):
            await self._diagnose(checks)
        return max(check.value for check in checks if check.kind == "parity")

    @cached_property
    def _prompts(self) -> ProbePrompts:
        """Rendered once; the picture is put into the store again before every use, which forgets it between steps."""
        bench, config = self._bench, self._config
        questions = assembly.build_questions(config, stream="canary", seed=config.seed, images=bench.images)
        (question,) = questions.take(0, 1)
        shown = with_picture(question, image_store=bench.images)
        return ProbePrompts(
            text=bench.renderer.prompt(without_pictures(question)),
            image=bench.renderer.prompt(shown),
            pictures=tuple(bench.images.image(image_id) for image_id in shown.image_ids),
        )

    async def _sample(self) -> dict[tuple[str, str], TrainingSample]:
        prompts, name = self._prompts.restore(self._bench.images), _name(self._replicas.index)
        sampled = await sample_everywhere(self._engine, prompts, sampling=self._sampling, name=name)
        return {(server, kind): row for server, rows in sampled.items() for kind, row in rows.items()}

    def _num_servers(self, replica: int) -> int:
        return len(server_share(self._config.engine.servers, replica=replica, num_replicas=self._replicas.count))

    def _check(self, answers: Mapping[tuple[str, str], Answer]) -> list[Check]:
        """This replica's checks; none on ranks that do not sample."""
        replica, tolerance, checks = self._replicas.index, PARITY_TOLERANCE[self._dtype], []

        def measured(name: str, server: str, value: float, limit: float) -> None:
            place = f" on {server}" if server else ""
            checks.append(make_check(f"{name}{place}", replica=replica, value=value, limit=limit))

        for (server, kind), answer in answers.items():
            moved = unanswered_move(self._last.get((server, kind)), answer)
            measured(f"parity, {kind}", server, mean_difference(answer.row, answer.logprobs), tolerance)
            measured(f"moved, {kind}", server, moved, MOVED_LIMIT[self._dtype])
            stale = answer.row.policy_version != self._actor.policy_version
            measured(f"version, {kind}", server, float(stale), 0)
        return checks

    async def _diagnose(self, checks: tuple[Check, ...]) -> None:
        await diagnose(
            checks,
            prompts=self._prompts if self._engine else None,
            sampling=self._sampling,
            tolerance=PARITY_TOLERANCE[self._dtype],
            bench=self._bench,
            actor=self._actor,
            engine=self._engine,
            replicas=self._replicas,
            num_servers=self._num_servers,
        )


def unanswered_move(before: Answer | None, now: Answer) -> float:
    """How far the trainer's log-probs of a row moved where the engine gave the same tokens and log-probs again.

    Largest over the sampled tokens, in nats; 0 where the engine's answer is another one, or the first.
    """
    if before is None or before.row.token_ids != now.row.token_ids:
        return 0.0
    if _largest_change(before.row.engine_logprobs, now.row.engine_logprobs, now.row) > SAME_ANSWER:
        return 0.0
    return _largest_change(before.logprobs, now.logprobs, now.row)


def _largest_change(before: list[float], now: list[float], row: TrainingSample) -> float:
    triples = zip(before, now, row.loss_mask, strict=True)
    return max(abs(new - old) for old, new, is_sampled in triples if is_sampled)


def _name(replica: int) -> str:
    return f"proof/{replica}"
