"""Metrics of a run: ``metrics.jsonl`` first, TensorBoard and Weights & Biases beside it.

``metrics.jsonl`` is the record: one JSON object a step, flushed line by line, so a killed run leaves at most one half-written
last line, which readers leave out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from nemo_axpo.extras import require_extra


class MetricsSink(Protocol):
    """A further place for the metrics of a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Finite scalars only."""

    def close(self) -> None:
        """Writes what is left."""


class MetricsLog:
    """Appends to ``metrics.jsonl`` and hands the same numbers to every sink."""

    def __init__(self, path: str | Path, *, sinks: Sequence[MetricsSink] = ()) -> None:
        self._path = Path(path)
        drop_half_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._sinks = tuple(sinks)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one step. Values are numbers (or scalar tensors); None, NaN and infinities become null."""
        values = {name: _finite(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step} | values, allow_nan=False) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.log(step, {name: value for name, value in values.items() if value is not None})

    def close(self) -> None:
        """Closes the file and every sink."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TensorBoardSink:
    """Event files for TensorBoard; events after ``last_step`` of an interrupted run are hidden."""

    def __init__(self, directory: str | Path, *, last_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # Late: importing it takes a second.

        self._writer = SummaryWriter(str(directory), purge_step=last_step + 1 if last_step else None, flush_secs=10)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the events."""
        self._writer.close()


class WandbSink:
    """Weights & Biases; the key comes from the environment (WANDB_API_KEY) or ``wandb login``."""

    def __init__(self, directory: str | Path, *, project: str, config: Mapping[str, Any]) -> None:
        """``directory`` is the run's: its name is the run's name, and resuming in it continues the same W&B run."""
        require_extra("wandb")
        import wandb

        id_path = Path(directory) / "wandb_id"
        if not id_path.exists():
            id_path.write_text(wandb.util.generate_id(), encoding="utf-8")
        self._run = wandb.init(
            project=project,
            name=Path(directory).name,
            id=id_path.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(directory),
            config=dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One history row."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Every complete row of a ``metrics.jsonl``; a half-written last line is left out. ValueError for a broken row."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"every line of {path} must be a JSON object; got line {number} ({error}): restore or remove it"
            ) from None
    return rows


def truncate_metrics(path: str | Path, *, last_step: int) -> None:
    """Keeps the rows up to and including ``last_step``; a missing file stays missing."""
    path = Path(path)
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= last_step]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(temporary, path)


def drop_half_line(path: str | Path) -> None:
    """Cuts off what follows the last line break, so that the next row starts on a line of its own."""
    path = Path(path)
    if path.exists():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(path, complete)


def _finite(value: Any) -> float | int | None:
    if value is None:
        return None
    number = value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    return number if math.isfinite(number) else None
