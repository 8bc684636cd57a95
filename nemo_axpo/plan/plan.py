"""A config, a model and a machine become a plan: everything the command prints."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nemo_axpo.config.schema import Config
from nemo_axpo.plan.batch import StepArithmetic, step_arithmetic, warm_start_arithmetic
from nemo_axpo.plan.engine import NO_ENGINE, EngineMemory, engine_memory
from nemo_axpo.plan.layout import JobLayout
from nemo_axpo.plan.memory import RankMemory, stage_memory
from nemo_axpo.plan.parameters import ParameterCount, rank_parameters, whole_model
from nemo_axpo.plan.servers import ServerMemory, server_memory
from nemo_axpo.plan.settings import TrainerSettings, trainer_settings
from nemo_axpo.plan.sizes import ModelSizes

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What the job asks the queue for."""

    world_size: int
    gpus_per_node: int = 8
    gpu_memory_gib: float = 80.0
    reserve_gib: float = 3.0
    """Left to the CUDA context, NCCL and fragmentation: an allowance, not a measurement."""

    @property
    def usable_bytes(self) -> float:
        """Per GPU."""
        return (self.gpu_memory_gib - self.reserve_gib) * GIB


@dataclass(frozen=True)
class PlanRequest:
    """A job to be planned."""

    config: Config
    sizes: ModelSizes
    machine: Machine
    image_share: float = 0.5
    """Share of a micro-batch's tokens that are image tokens; an assumption."""
    is_warm_start: bool = False
    """Whether ``nemo-axpo sft`` is planned: no reference policy, and an engine only to measure the result."""

    def with_actor(self, **values: object) -> PlanRequest:
        """The same job with other values in the config's section ``actor``."""
        actor = self.config.actor.model_copy(update=values)
        return replace(self, config=self.config.model_copy(update={"actor": actor}))


@dataclass(frozen=True)
class StagePlan:
    """The fullest rank of one pipeline stage."""

    stage: int
    parameters: ParameterCount
    memory: RankMemory


@dataclass(frozen=True)
class Plan:
    """What a job needs; it says nothing yet of whether that is there."""

    layout: JobLayout
    settings: TrainerSettings
    step: StepArithmetic
    engine: EngineMemory
    whole: ParameterCount
    stages: tuple[StagePlan, ...]
    servers: ServerMemory | None

    @property
    def peak_bytes(self) -> float:
        """Of the fullest rank."""
        return max(stage.memory.total for stage in self.stages)


def make_plan(request: PlanRequest) -> Plan:
    """The plan of a job whose sizes divide (:func:`nemo_axpo.plan.checks.layout_problems_of` finds none)."""
    config, sizes = request.config, request.sizes
    replicas = request.machine.world_size // config.actor.model_parallel
    settings = trainer_settings(config, data_parallel=replicas, is_warm_start=request.is_warm_start)
    arithmetic = warm_start_arithmetic if request.is_warm_start else step_arithmetic
    step = arithmetic(config, data_parallel=replicas, image_share=request.image_share)
    has_engine = not request.is_warm_start or config.eval.window_questions > 0
    engine = engine_memory(config.engine, sizes=sizes) if has_engine else NO_ENGINE
    parallel = {"tensor_parallel": settings.tensor_parallel, "pipeline_parallel": settings.pipeline_parallel}
    stages = [
        StagePlan(
            stage,
            rank_parameters(sizes, stage=stage, **parallel),
            stage_memory(sizes, settings=settings, step=step, engine=engine, stage=stage),
        )
        for stage in range(settings.pipeline_parallel)
    ]
    layout = JobLayout(data_parallel=replicas, gpus_per_node=request.machine.gpus_per_node, **parallel)
    servers = server_memory(config, sizes=sizes, gpu_memory_gib=request.machine.gpu_memory_gib)
    return Plan(layout, settings, step, engine, whole_model(sizes), tuple(stages), servers)
