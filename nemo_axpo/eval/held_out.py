"""The held-out questions of a config: training and ``nemo-axpo eval`` ask the same ones in the same way."""

from __future__ import annotations

from collections.abc import Callable

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import OneProcess, Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.eval.evaluate import EvalResult, evaluate

_ONE_PROCESS = OneProcess()


async def evaluate_held_out(
    config: Config,
    *,
    bench: Workbench,
    engine: Engine | None,
    on_finished: Callable[[], None] | None = None,
    replicas: Replicas = _ONE_PROCESS,
) -> EvalResult:
    """Evaluates the policy that ``engine`` holds (None on ranks that do not sample); the result is on every rank.

    Questions and seeds hang on the ``eval`` section alone, so that every run and every checkpoint answers the same test.
    ``on_finished`` is called after each of ``eval.num_questions · eval.num_rollouts`` rollouts.
    """
    section = config.eval
    stream = assembly.build_questions(config, stream="eval", seed=section.seed, images=bench.images)
    producer = engine and assembly.build_producer(config, bench=bench, engine=engine, temperature=section.temperature)
    return await evaluate(
        producer,
        stream.take(0, section.num_questions),
        num_rollouts=section.num_rollouts,
        seed=section.seed,
        on_finished=on_finished,
        replicas=replicas,
    )
