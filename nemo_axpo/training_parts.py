"""The parts of a training run, put together from its config, and the checks before its first step.

Both ways to train use them: ``nemo_axpo.train``, and the loop under NeMo-Aligner.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo import assembly
from nemo_axpo.actors.actor import Actor
from nemo_axpo.assembly import Workbench
from nemo_axpo.canaries.checks import require
from nemo_axpo.canaries.proof import SyncProof
from nemo_axpo.canaries.rewards import verifier_checks
from nemo_axpo.canaries.run import run_canaries
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.loop import LoopSettings, QuestionSource, TrainingLoop
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.rewards.base import require_verifiers
from nemo_axpo.weight_sync.sync import WeightSync


@dataclass(frozen=True)
class TrainingParts:
    """What a run trains with, on one rank of its job."""

    config: Config
    replicas: Replicas
    bench: Workbench
    loss: PolicyLoss
    actor: Actor
    engine: Engine | None
    """None on ranks that do not sample."""
    proof: SyncProof
    weight_sync: WeightSync
    questions: QuestionSource
    loop: TrainingLoop

    async def check(self) -> None:
        """Before anything is trained; the engine holds the policy.

        A known-right answer must score 1 and a wrong one 0; CanaryError unless engine and trainer see the same pictures
        and sample the same distribution.
        """
        require_verifiers(await verifier_checks(self.config, bench=self.bench, replicas=self.replicas))
        require(
            await run_canaries(
                self.config, bench=self.bench, actor=self.actor, engine=self.engine, replicas=self.replicas
            )
        )
        if self.config.engine.sync.proof_every:
            await self.proof()  # of every server, and what the proof after the first update compares with

    async def close(self) -> None:
        """Ends the verifiers' and the engine's work."""
        await self.bench.verifiers.close()
        if self.engine is not None:
            await self.engine.close()


def build_training_parts(config: Config, *, replicas: Replicas) -> TrainingParts:
    """The parts of ``config``'s run on this rank; every rank of the job calls it."""
    bench = assembly.build_workbench(config, checkpoint=config.model.path)
    loss = assembly.build_loss(config)
    actor = assembly.build_actor(
        config,
        bench=bench,
        optimizer=assembly.policy_optimizer(config),
        keep_reference=loss.needs_reference,
        seed=config.seed,
    )
    engine = assembly.build_engine(config, bench=bench, replicas=replicas) if replicas.is_leader else None
    proof = SyncProof(config, bench=bench, actor=actor, engine=engine, replicas=replicas)
    sync = assembly.build_weight_sync(config, actor=actor, engine=engine, replicas=replicas, prove=proof)
    questions = assembly.build_questions(config, stream="train", seed=config.seed, images=bench.images)
    temperature = config.rollout.temperature
    loop = TrainingLoop(
        algorithm=assembly.build_algorithm(config),
        loss=loss,
        actor=actor,
        engine=engine,
        producer=engine and assembly.build_producer(config, bench=bench, engine=engine, temperature=temperature),
        questions=questions,
        image_store=bench.images,
        settings=loop_settings(config),
        row_cost=assembly.build_row_cost(config, bench=bench),
        replicas=replicas,
        weight_sync=sync,
    )
    return TrainingParts(config, replicas, bench, loss, actor, engine, proof, sync, questions, loop)


def loop_settings(config: Config) -> LoopSettings:
    """The numbers of the loop itself."""
    return LoopSettings(
        seed=config.seed,
        num_questions=config.data.num_questions_per_step,
        temperature=config.rollout.temperature,
        num_minibatches=config.actor.num_minibatches,
        warmup_steps=config.optimizer.warmup_steps,
        lr=config.optimizer.lr,
    )
