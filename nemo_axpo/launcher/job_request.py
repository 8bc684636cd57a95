"""What is asked of a cluster: one command of ``nemo-axpo``, its nodes, and the servers beside it."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.config.schema import Config
from nemo_axpo.launcher.cluster import ClusterConfig

RESUMED = ("train", "sft")
"""Commands that go on where they stopped (``--resume``)."""
ASKED_AGAIN = "eval"
"""Keeps its records: started again, it asks what is missing."""
PLAIN = "table"
"""One short process: no GPU, no server, nothing to go on with."""
COMMANDS = (*RESUMED, ASKED_AGAIN, PLAIN)


@dataclass(frozen=True)
class JobRequest:
    """One command of ``nemo-axpo`` on a cluster."""

    name: str
    command: tuple[str, ...]
    """Words after ``nemo-axpo``, as they run on every rank."""
    config: Config
    """What the command composes."""
    cluster: ClusterConfig
    run_dir: str
    """Absolute, on a file system of all nodes."""
    dependency: str | None = None
    """As sbatch takes it: ``afterok:123``."""
    settings: tuple[str, ...] = ()
    """The recipe and the settings of the command, for other commands that read the same config."""

    @property
    def is_plain(self) -> bool:
        """Whether it is one short process."""
        return self.command[0] == PLAIN

    @property
    def num_trainer_nodes(self) -> int:
        return self.config.job.num_nodes or 1

    @property
    def ranks_per_node(self) -> int:
        """Of the trainer."""
        return self.config.job.gpus_per_node if self.config.job.num_nodes else 1

    @property
    def has_servers(self) -> bool:
        """Whether it starts generation servers: not where the config names running ones."""
        return self.config.job.servers.per_node > 0 and not self.config.engine.servers

    @property
    def num_server_nodes(self) -> int:
        """Nodes with generation servers: their own, or else the trainer's; 0: there are none."""
        return (self.config.job.servers.num_nodes or self.num_trainer_nodes) if self.has_servers else 0

    @property
    def first_server_node(self) -> int:
        """Its number in the job; where there are no generation servers, of the first node for tool servers."""
        return self.num_trainer_nodes if self.has_servers and self.config.job.servers.num_nodes else 0

    @property
    def num_tool_nodes(self) -> int:
        """Nodes with a tool server, the first ones of those with generation servers."""
        return self.config.job.tool_servers.num_nodes

    @property
    def num_nodes(self) -> int:
        return max(self.num_trainer_nodes, self.first_server_node + self.num_server_nodes)
