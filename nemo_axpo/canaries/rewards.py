"""The canary of rewards: every configured verifier tells right from wrong before anything is trained on what it says.

Each scores the answers it is known for (a judge is asked, whatever its cache holds; workers compute), and the references of
the first questions against themselves and against a wrong answer. A verifier that is not available fails as well.
"""

from __future__ import annotations

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.rewards.base import VerifierCheck

NUM_QUESTIONS = 4
"""Of the run, whose own answers are scored: enough to see a reference that its verifier cannot read."""


async def verifier_checks(config: Config, *, bench: Workbench, replicas: Replicas) -> tuple[VerifierCheck, ...]:
    """The checks of all replicas, the same on every rank; ranks that do not sample make none."""
    checks: tuple[VerifierCheck, ...] = ()
    if replicas.is_leader:
        stream = assembly.build_questions(config, stream="train", seed=config.seed, images=bench.images)
        checks = await bench.verifiers.measure(stream.take(0, NUM_QUESTIONS))
    return replicas.gather(checks, kind=VerifierCheck)
