"""``nemo-axpo doctor``: the canaries alone, as tables."""

from __future__ import annotations

import asyncio
import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nemo_axpo import assembly
from nemo_axpo.canaries.checks import RULES, Check, require
from nemo_axpo.canaries.proof import SyncProof
from nemo_axpo.canaries.rewards import verifier_checks
from nemo_axpo.canaries.run import run_canaries
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.rewards.base import VerifierCheck, require_verifiers


def run_doctor(config: Config, *, console: Console | None = None) -> tuple[Check, ...]:
    """Builds actor and engine of ``config.model.path`` as training does; every rank of a job calls it.

    Prints one line a check, then raises CanaryError where one failed; without a table where only the proof of a server did.
    """
    replicas = assembly.build_replicas(config)
    checks, rewards = asyncio.run(_measure(config, replicas=replicas))
    if replicas.is_main:
        console = console or Console()
        console.print(_table(checks))
        console.print(_rewards_table(rewards))
    require(checks)
    require_verifiers(rewards)
    return checks


async def _measure(config: Config, *, replicas: Replicas) -> tuple[tuple[Check, ...], tuple[VerifierCheck, ...]]:
    bench = assembly.build_workbench(config, checkpoint=config.model.path)
    actor = assembly.build_actor(
        config, bench=bench, optimizer=assembly.policy_optimizer(config), keep_reference=False, seed=config.seed
    )
    engine = assembly.build_engine(config, bench=bench, replicas=replicas) if replicas.is_leader else None
    try:
        rewards = await verifier_checks(config, bench=bench, replicas=replicas)
        assembly.build_weight_sync(config, actor=actor, engine=engine, replicas=replicas).push()
        parts = {"bench": bench, "actor": actor, "engine": engine, "replicas": replicas}
        checks = await run_canaries(config, **parts)
        if all(check.passed for check in checks) and config.engine.servers:
            await SyncProof(config, **parts)()  # the canaries ask one server, this asks every one
        return checks, rewards
    finally:
        await bench.verifiers.close()
        if engine is not None:
            await engine.close()


def _table(checks: tuple[Check, ...]) -> Table:
    table = Table(
        caption="parity: mean |trainer - engine| in nats per token; sight: largest change by a gray picture; renormalised: "
        "|log-prob| of the only token left"
    )
    for title in ("check", "replica", "measured", "limit", ""):
        table.add_column(title, justify="right" if title in ("measured", "limit") else "left")
    for check in checks:
        table.add_row(
            check.name,
            str(check.replica),
            f"{check.value:.1e}",
            f"{RULES[check.kind].sign} {check.limit:g}",
            "ok" if check.passed else "FAILED",
        )
    return table


def _rewards_table(checks: tuple[VerifierCheck, ...]) -> Table:
    table = Table(caption="answers whose reward is known, as the verifier of their source scored them")
    for title in ("source", "reference", "answer", "reward", "must be", ""):
        table.add_column(title, justify="right" if title in ("reward", "must be") else "left")
    for check in checks:
        reward = "unavailable" if math.isnan(check.reward) else f"{check.reward:g}"
        cells = (check.source, check.reference, check.answer, reward, f"{check.expected:g}")
        table.add_row(*map(escape, cells), "ok" if check.passed else "FAILED")
    return table
