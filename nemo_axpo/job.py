"""What the ranks of a training command do together: one of them claims the run directory, speaks and writes.

The others read the same directory and are silent; every rank takes part where weights are put together.
"""

from __future__ import annotations

import contextlib
import io
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.journal import Journal
from nemo_axpo.metrics_log import MetricsLog, MetricsSink, TensorBoardSink, WandbSink
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.run_directory import RunDirectory, open_run_directory
from nemo_axpo.weight_sync.sync import take_part


@dataclass(frozen=True)
class PeakMemory:
    """What a rank has needed at most so far."""

    gib: float
    """Resident size of the process."""
    gpu_gib: float | None = None
    """What torch had allocated on the rank's GPU; None on a CPU."""


@contextlib.contextmanager
def join_run(
    config: Config, *, replicas: Replicas, resume: bool = False
) -> Iterator[tuple[RunDirectory, ProgressDisplay]]:
    """The run directory and the display of this rank, for as long as the block lasts.

    The main rank claims the directory (errors of :func:`open_run_directory`) before another one looks into it.
    """
    if replicas.is_main:
        with open_run_directory(config, resume=resume) as run, ProgressDisplay() as progress:
            wait_for_all(replicas)
            yield run, progress
    else:
        wait_for_all(replicas)
        with ProgressDisplay(console=Console(file=io.StringIO())) as progress:
            yield RunDirectory(Path(config.output_dir)), progress


def open_metrics_log(
    config: Config, *, run: RunDirectory, replicas: Replicas, last_step: int = 0
) -> contextlib.AbstractContextManager[MetricsLog | None]:
    """The metrics of the run, with the sinks that the config asks for; None on all ranks but the main one."""
    if not replicas.is_main:
        return contextlib.nullcontext()
    return MetricsLog(run.metrics_path, sinks=metrics_sinks(config, run=run, last_step=last_step))


@contextlib.contextmanager
def open_journal(run: RunDirectory, *, replicas: Replicas, last_step: int = 0) -> Iterator[Journal | None]:
    """The journal of the run, in which it goes on after ``last_step``; None on all ranks but the main one."""
    if not replicas.is_main:
        yield None
        return
    with Journal(run.journal_path) as journal:
        journal.resumed(last_step)
        yield journal


def metrics_sinks(config: Config, *, run: RunDirectory, last_step: int) -> list[MetricsSink]:
    """TensorBoard and W&B as the config asks."""
    sinks: list[MetricsSink] = []
    if config.logging.tensorboard:
        sinks.append(TensorBoardSink(run.tensorboard_path, last_step=last_step))
    if config.logging.wandb.enabled:
        settings: Mapping[str, Any] = config.model_dump(mode="json")
        sinks.append(WandbSink(run.path, project=config.logging.wandb.project, config=settings))
    return sinks


def save_policy(actor: Any, path: Path, *, replicas: Replicas) -> Path:
    """Writes the policy as a Hugging Face checkpoint; it is whole when a rank returns."""
    if replicas.is_main:
        actor.save_hf(path)
    else:
        take_part(actor)
    wait_for_all(replicas)
    return path


def wait_for_all(replicas: Replicas) -> None:
    """Returns when every rank is here."""
    replicas.gather((), kind=PeakMemory)


def memory_metrics(replicas: Replicas) -> dict[str, float]:
    """Of the rank that has needed most so far: ``memory/peak_gib`` of the host, on GPUs ``memory/peak_gpu_gib``."""
    records = replicas.gather([_own_peak()], kind=PeakMemory)
    on_gpus = [record.gpu_gib for record in records if record.gpu_gib is not None]
    gpu = {"memory/peak_gpu_gib": max(on_gpus)} if on_gpus else {}
    return {"memory/peak_gib": max(record.gib for record in records), **gpu}


def _own_peak() -> PeakMemory:
    import torch  # Late: who only looks at a run does not wait for it.

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gpu_gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return PeakMemory(size / (2**30 if sys.platform == "darwin" else 2**20), gpu_gib)
