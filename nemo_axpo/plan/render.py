"""A plan as tables for people and as JSON values for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from nemo_axpo.plan.layout import JobLayout
from nemo_axpo.plan.parameters import ParameterCount
from nemo_axpo.plan.plan import GIB, Plan, PlanRequest
from nemo_axpo.plan.servers import ServerMemory

_KINDS = {
    "weights": "weights",
    "reference": "reference policy",
    "fp8_weights": "FP8 copies of weights",
    "gradients": "gradients (float32)",
    "optimizer": "optimizer",
    "engine_weights": "engine: weights",
    "engine_cache": "engine: KV cache",
    "inputs": "micro-batches on the GPU",
    "activations_language": "activations: language",
    "activations_vision": "activations: vision",
    "logits": "logits and log-probs",
    "workspace": "backward workspace",
    "communication": "communication buffers",
    "after_backward": "(or after backward, alone)",
}


def plan_values(
    request: PlanRequest, plan: Plan | None, *, problems: Sequence[str], warnings: Sequence[str]
) -> dict[str, Any]:
    """JSON values; memory in bytes. Without a plan only the problems are known."""
    machine = asdict(request.machine) | {"usable_bytes": request.machine.usable_bytes}
    values: dict[str, Any] = {"fits": not problems, "problems": list(problems), "warnings": list(warnings)}
    values["machine"] = machine
    if plan is None:
        return values
    stages = [
        {"stage": s.stage, "parameters": asdict(s.parameters), "memory": asdict(s.memory), "total": s.memory.total}
        for s in plan.stages
    ]
    layout = asdict(plan.layout) | {"ranks": [asdict(place) for place in plan.layout.places()]}
    settings, whole = asdict(plan.settings), asdict(plan.whole) | {"total": plan.whole.total}
    return {**values, "layout": layout, "settings": settings, "step": asdict(plan.step), "parameters": whole,
            "stages": stages, "peak_bytes": plan.peak_bytes,
            "servers": plan.servers and {**asdict(plan.servers), "rows": plan.servers.rows}}  # fmt: skip


def print_plan(
    request: PlanRequest, plan: Plan | None, *, problems: Sequence[str], warnings: Sequence[str], console: Console
) -> None:
    """Tables, then the warnings; the problems are the caller's error."""
    if plan is not None:
        _print_layout(plan.layout, console=console)
        console.print(_parameter_table(plan))
        console.print(_memory_table(request, plan))
        if plan.servers is not None:
            console.print(_server_table(plan.servers))
        _print_step(request, plan, console=console)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    if not problems:
        console.print("The job fits.", style="green")


def print_servers(servers: ServerMemory, *, problems: Sequence[str], console: Console) -> None:
    """The servers alone, of a job that trains nothing; the problems are the caller's error."""
    console.print(_server_table(servers))
    if not problems:
        console.print("The job fits.", style="green")


def _print_layout(layout: JobLayout, *, console: Console) -> None:
    parts = (layout.tensor_parallel, layout.pipeline_parallel, layout.data_parallel)
    console.print(
        f"{layout.world_size} rank{'s' if layout.world_size > 1 else ''} = TP {parts[0]} × PP {parts[1]} × DP {parts[2]}, "
        f"{layout.num_nodes} node{'s' if layout.num_nodes > 1 else ''} of {layout.gpus_per_node} GPUs",
        style="bold",
        highlight=False,
    )
    table = Table(title="Ranks of one model", title_justify="left")
    for column in ("replica", "leader", "stage", "ranks", "nodes"):
        table.add_column(column, justify="right")
    for replica in _shown(layout.data_parallel):
        for stage in range(layout.pipeline_parallel):
            table.add_row(*_group_cells(layout, replica=replica, stage=stage))
    console.print(table)


def _group_cells(layout: JobLayout, *, replica: int | None, stage: int) -> tuple[str, ...]:
    if replica is None:
        return ("…",) * 5
    group = [place for place in layout.places() if (place.dp_rank, place.pp_rank) == (replica, stage)]
    leader = next((str(place.rank) for place in group if place.is_leader), "")
    nodes = sorted({place.node for place in group})
    return str(replica), leader, str(stage), _span([place.rank for place in group]), _span(nodes)


def _shown(count: int) -> list[int | None]:
    """All of a few replicas, the ends of many."""
    return list(range(count)) if count <= 4 else [0, 1, None, count - 1]


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _parameter_table(plan: Plan) -> Table:
    table = Table(title="Parameters", title_justify="left")
    table.add_column("")
    counts: dict[str, ParameterCount] = {"whole model": plan.whole}
    counts |= {f"rank of stage {stage.stage}": stage.parameters for stage in plan.stages}
    for name in counts:
        table.add_column(name, justify="right")
    for part in ("vision", "embedding", "language", "output", "total"):
        table.add_row(part, *(f"{getattr(count, part):,}" for count in counts.values()))
    return table


def _memory_table(request: PlanRequest, plan: Plan) -> Table:
    unit, name = (GIB, "GiB") if plan.peak_bytes >= GIB else (GIB / 1024, "MiB")
    table = Table(title=f"Memory of the fullest rank, {name}", title_justify="left", show_footer=True)
    table.add_column("", footer=f"peak, of {request.machine.usable_bytes / GIB:.1f} GiB usable")
    for stage in plan.stages:
        table.add_column(f"stage {stage.stage}", justify="right", footer=_size(stage.memory.total, unit=unit))
    for kind, title in _KINDS.items():
        sizes = [getattr(stage.memory, kind) for stage in plan.stages]
        if any(sizes):
            table.add_row(title, *(_size(size, unit=unit) for size in sizes))
    return table


def _server_table(servers: ServerMemory) -> Table:
    table = Table(title="Generation servers", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("servers × GPUs of each", f"{servers.count} × {servers.gpus_each}")
    table.add_row("weights, GiB a GPU", _size(servers.weights, unit=GIB))
    table.add_row("left for keys and values, GiB a GPU", _size(servers.cache, unit=GIB))
    table.add_row("longest rows held at once, a server", f"{servers.rows:,}")
    return table


def _print_step(request: PlanRequest, plan: Plan, *, console: Console) -> None:
    step, config = plan.step, request.config
    table = Table(title="One training step, at most", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    rollouts = {
        f"rollouts ({config.data.num_questions_per_step} questions × {config.algorithm.num_rollouts})": step.num_rollouts,
        "prefixes resampled, floor(r·B·N / K)": step.num_prefixes,
        "their continuations": step.num_continuations,
    }
    minibatches = 1 if request.is_warm_start else config.actor.num_minibatches
    rows = {
        **({} if request.is_warm_start else rollouts),
        "rows trained": step.num_rows,
        f"tokens (rows of {config.rollout.max_row_tokens:,})": step.num_tokens,
        f"micro-batches per replica and optimizer step (of {minibatches})": step.num_microbatches,
        "tokens of a micro-batch": step.microbatch.num_tokens,
        f"of these image tokens (assumed {request.image_share:.0%})": step.microbatch.num_image_tokens,
        "of these trained": step.microbatch.num_loss_tokens,
    }
    for title, value in rows.items():
        table.add_row(title, f"{value:,}")
    if plan.layout.pipeline_parallel > 1:
        table.add_row("pipeline bubble", f"{step.bubble(plan.layout.pipeline_parallel):.1%}")
    console.print(table)


def _size(num_bytes: float, *, unit: float) -> str:
    size = num_bytes / unit
    return "–" if not num_bytes else f"{size:.2f}" if size >= 0.005 else "<0.01"
