"""The schema of a run, and with its sections the only home of defaults. Their fields stand in ``sections/``.

Defaults are the paper's where the paper has one (N, K, r, clips, KL, turns) and else those of a real model; a recipe under
``conf/`` states what it changes. Every section is frozen, and a key no section has is an error.
"""

from __future__ import annotations

from typing import Literal

from nemo_axpo.config.sections.actor import ActorConfig, Fp8Config, ModelConfig, OptimizerConfig
from nemo_axpo.config.sections.algorithm import AlgorithmConfig, AxpoConfig, GrpoConfig
from nemo_axpo.config.sections.base import Count, NonNegative, Positive, Probability, Section
from nemo_axpo.config.sections.data import DataConfig, DataFileConfig
from nemo_axpo.config.sections.distill import DistillConfig, EndpointConfig, FilterConfig
from nemo_axpo.config.sections.engine import EngineConfig, SyncConfig, VllmConfig
from nemo_axpo.config.sections.evaluation import BenchmarksConfig, EvalConfig
from nemo_axpo.config.sections.job import JobConfig, ServersConfig, ToolServersConfig
from nemo_axpo.config.sections.loss import LossConfig
from nemo_axpo.config.sections.rewards import JudgeConfig, MathRewardConfig, RewardsConfig, VerifierName
from nemo_axpo.config.sections.rollout import RolloutConfig
from nemo_axpo.config.sections.sft import SftConfig
from nemo_axpo.config.sections.tools import PythonToolConfig, SearchConfig, ToolLimitsConfig, ToolsConfig
from nemo_axpo.config.sections.train import LoggingConfig, TrainConfig, WandbConfig
from nemo_axpo.config.sections.world import WorldConfig

__all__ = [
    "ActorConfig",
    "AlgorithmConfig",
    "AxpoConfig",
    "BenchmarksConfig",
    "Config",
    "Count",
    "DataConfig",
    "DataFileConfig",
    "DistillConfig",
    "EndpointConfig",
    "EngineConfig",
    "EvalConfig",
    "FilterConfig",
    "Fp8Config",
    "GrpoConfig",
    "JobConfig",
    "JudgeConfig",
    "LoggingConfig",
    "LossConfig",
    "MathRewardConfig",
    "ModelConfig",
    "NonNegative",
    "OptimizerConfig",
    "Positive",
    "Probability",
    "PythonToolConfig",
    "RewardsConfig",
    "RolloutConfig",
    "SearchConfig",
    "Section",
    "ServersConfig",
    "SftConfig",
    "SyncConfig",
    "ToolLimitsConfig",
    "ToolServersConfig",
    "ToolsConfig",
    "TrainConfig",
    "VerifierName",
    "VllmConfig",
    "WandbConfig",
    "WorldConfig",
]


class Config(Section):
    """A whole run."""

    seed: int = 0
    """Root of every derived seed."""
    output_dir: str = "outputs/run"
    """Run directory."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the trainer computes."""
    loop: Literal["native", "aligner"] = "native"
    """Which training loop runs: ours, or NeMo-Aligner's ``ReinforceTrainer.fit`` with the same parts (docs/aligner.md)."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig()
    algorithm: AlgorithmConfig = AxpoConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    actor: ActorConfig = ActorConfig()
    engine: EngineConfig = EngineConfig()
    rollout: RolloutConfig = RolloutConfig()
    tools: ToolsConfig = ToolsConfig()
    rewards: RewardsConfig = RewardsConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    sft: SftConfig = SftConfig()
    distill: DistillConfig = DistillConfig()
    filter: FilterConfig = FilterConfig()
    job: JobConfig = JobConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def trainer_gpus(self) -> int:
        """GPUs that the trainer's ranks take on each of their nodes."""
        return self.job.gpus_per_node if self.device == "cuda" else 0
