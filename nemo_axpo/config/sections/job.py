"""The ranks of a job, its machines, its servers and its time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemo_axpo.config.sections.base import Count, Positive, Section


class ServersConfig(Section):
    """Generation servers that a submitted job starts beside its trainer."""

    num_nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes of their own; 0: they take GPUs of the trainer's nodes, after the trainer's."""
    per_node: Annotated[int, Field(ge=0)] = 0
    """Servers of each of these nodes; 0: the job starts none."""
    gpus_each: Count = 1
    """GPUs of a server: its tensor parallelism."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that a server takes."""
    max_num_seqs: Count = 128
    """Requests that a server decodes at the same time."""
    first_port: Annotated[int, Field(ge=1024, le=65_000)] = 8000
    """The first server of a node listens here, the next one a port higher."""
    start_timeout_min: Positive = 30.0
    """How long the trainer waits for all of them."""


class ToolServersConfig(Section):
    """Tool servers that a submitted job starts: tools then run on other nodes' CPUs than the trainer's."""

    num_nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes that run one, those of generation servers first; 0: tools run beside the trainer."""
    tools: tuple[str, ...] = ("python",)
    """Which of ``tools.names``."""
    port: Annotated[int, Field(ge=1024, le=65_000)] = 8900
    """Each listens here."""
    max_concurrent_calls: Count = 64
    """Calls that a server runs at the same time; more wait."""


class JobConfig(Section):
    """The ranks of a job, its machines and its time."""

    timeout_min: Positive = 120.0
    """Minutes a rank waits for the others, the rollouts of the slowest included, before the job ends."""
    max_time: str | None = Field(default=None, pattern=r"^\d+:\d{1,2}:\d{1,2}:\d{1,2}$")
    """Days:hours:minutes:seconds after which training saves a checkpoint and ends, to be resumed; null: no limit."""
    num_nodes: Count | None = None
    """Nodes of the trainer; null: however many ranks are started."""
    gpus_per_node: Count = 8
    """Ranks of the trainer on each of ``num_nodes``."""
    servers: ServersConfig = ServersConfig()
    tool_servers: ToolServersConfig = ToolServersConfig()

    @property
    def world_size(self) -> int | None:
        """Ranks of the trainer, where the config says it."""
        return self.num_nodes and self.num_nodes * self.gpus_per_node
