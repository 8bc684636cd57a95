"""Length of a run, and what it leaves behind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemo_axpo.config.sections.base import Count, Section


class TrainConfig(Section):
    """Length of the run and what it leaves behind."""

    num_steps: Count = 200
    """Rollout-and-update steps of the run."""
    eval_every: Annotated[int, Field(ge=0)] = 50
    """Steps between evaluations; 0 evaluates only before and after training."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0 writes only the last one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept."""
    checkpoint_async: bool = True
    """A checkpoint is written while the next steps run; it holds a copy of the state on the CPU meanwhile."""
    record_every: Annotated[int, Field(ge=0)] = 10
    """Steps between recorded groups (trees of the report); 0 records none."""


class WandbConfig(Section):
    """Weights & Biases; the key comes from the environment (WANDB_API_KEY), never from here."""

    enabled: bool = False
    """Metrics go there too."""
    project: str = "nemo_axpo"
    """Under which the run appears."""


class LoggingConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = True
    """Event files in the run directory."""
    wandb: WandbConfig = WandbConfig()
