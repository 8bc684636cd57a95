"""The canaries of a run: every replica compares its engine with the trainer, and every rank learns of all results."""

from __future__ import annotations

from typing import Any

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.canaries.checks import Check, canary_dtype, run_checks
from nemo_axpo.canaries.probes import IMAGE, MODALITIES, TOOL_IMAGE, Probes, sample_probes
from nemo_axpo.canaries.scoring import trainer_logprobs
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.engines.base import Engine

NUM_TOKENS = 16
"""Sampled per probe: enough for a mean, nothing beside a step."""


async def run_canaries(
    config: Config, *, bench: Workbench, actor: Any, engine: Engine | None, replicas: Replicas
) -> tuple[Check, ...]:
    """The checks of all replicas, the same on every rank; ``engine`` holds the actor's weights."""
    probes = await _sample(config, bench=bench, engine=engine, name=_name(replicas.index)) if engine else None
    logprobs = trainer_logprobs(
        probes.samples if probes else (), ids_of=_row_ids, actor=actor, replicas=replicas, image_store=bench.images
    )
    checks: tuple[Check, ...] = ()
    if probes:
        checks = run_checks(
            probes,
            logprobs,
            dtype=canary_dtype(config.actor.dtype, config.engine.dtype),
            replica=replicas.index,
            policy_version=actor.policy_version,
            tokenizer=bench.renderer.tokenizer,
        )
    return replicas.gather(checks, kind=Check)


async def _sample(config: Config, *, bench: Workbench, engine: Engine, name: str) -> Probes:
    questions = assembly.build_questions(config, stream="canary", seed=config.seed, images=bench.images)
    return await sample_probes(
        engine,
        questions.take(0, 1)[0],
        renderer=bench.renderer,
        image_store=bench.images,
        num_tokens=min(NUM_TOKENS, config.rollout.max_new_tokens),
        temperature=config.rollout.temperature,
        name=name,
    )


def _name(replica: int) -> str:
    return f"canary/{replica}"


def _row_ids(replica: int) -> list[str]:
    name = _name(replica)
    return [f"{name}/{m}" for m in MODALITIES] + [f"{name}/{m}/blank" for m in (IMAGE, TOOL_IMAGE)]
