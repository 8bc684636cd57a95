"""Memory of the generation servers that a job starts: weights, and room for the keys and values of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_axpo.config.schema import Config
from nemo_axpo.engines.names import SERVER_ENGINES
from nemo_axpo.errors import rule_message
from nemo_axpo.plan.parameters import whole_model
from nemo_axpo.plan.settings import BYTES
from nemo_axpo.plan.sizes import ModelSizes

GIB = 2**30
ACTIVATIONS_GIB = 4.0
"""Left to a server's activations and CUDA graphs: an allowance, not a measurement."""


@dataclass(frozen=True)
class ServerMemory:
    """Bytes on each GPU of one server; its tensor parallelism divides weights and key-value heads."""

    count: int
    """Servers of the job."""
    gpus_each: int
    weights: float
    cache: float
    """What the share of the GPU leaves for keys and values; negative where not even the weights fit."""
    per_row: float
    """Keys and values of one row of ``engine.max_model_len``."""

    @property
    def rows(self) -> int:
        """Longest rows that are held at the same time."""
        return max(0, int(self.cache // self.per_row))


def server_memory(config: Config, *, sizes: ModelSizes, gpu_memory_gib: float) -> ServerMemory | None:
    """Of the servers in ``job.servers``; None where the job starts none."""
    servers = config.job.servers
    if config.engine.name not in SERVER_ENGINES or not servers.per_node:
        return None
    value_bytes, shards = BYTES[config.engine.dtype], servers.gpus_each
    weights = whole_model(sizes).total * value_bytes / shards
    position = 2 * sizes.num_layers * sizes.group_width * value_bytes / shards
    room = servers.gpu_memory_utilization * gpu_memory_gib - ACTIVATIONS_GIB
    nodes = servers.num_nodes or config.job.num_nodes or 1
    return ServerMemory(
        nodes * servers.per_node, shards, weights, room * GIB - weights, position * config.engine.max_model_len
    )


def server_problems(config: Config, memory: ServerMemory | None, *, gpus_per_node: int) -> Iterator[str]:
    """Servers that do not fit their GPUs, or GPUs that do not fit their nodes."""
    if memory is None:
        return
    servers = config.job.servers
    asked = servers.per_node * servers.gpus_each + (0 if servers.num_nodes else config.trainer_gpus)
    if asked > gpus_per_node:
        rule = f"trainer and servers of a node must share its {gpus_per_node} GPUs"
        yield rule_message(rule, got=f"{asked}", cure="lower job.servers.per_node, or set job.servers.num_nodes")
    if memory.rows < 1:
        rule = "a server's GPUs must hold the weights and the keys and values of one row"
        got = f"{memory.weights / GIB:.1f} GiB of weights a GPU, {memory.cache / GIB:.1f} GiB left"
        yield rule_message(rule, got=got, cure="raise job.servers.gpus_each, or lower engine.max_model_len")
