"""Supervised training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemo_axpo.config.sections.base import Count, NonNegative, Positive, Probability, Section


class SftConfig(Section):
    """Supervised training on trajectories, or on fresh samples of the embedded world's warm start."""

    trajectories: tuple[str, ...] = ()
    """Directories of ``nemo-axpo distill``; none: the warm start of the embedded world."""
    num_epochs: Positive = 3.0
    """Over the trajectories; may end within an epoch."""
    num_steps: Count = 300
    """Of the warm start, which has no epochs."""
    batch_size: Count = 64
    """Trajectories per step of the whole job."""
    max_row_tokens: Count = 20_480
    """Longer trajectories are left out."""
    lr: Positive = 1e-5
    """Peak learning rate; cosine decay."""
    min_lr_ratio: Probability = 0.0
    """Last learning rate as a share of the peak."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up."""
    warmup_share: Probability | None = None
    """The same as a share of all steps; null: ``warmup_steps`` counts."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints to resume from; 0: none."""
    weight_decay: NonNegative = 0.01
    """AdamW's: a step also shrinks weights by the learning rate times this."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """Decay of the first and second moment."""
    clip_grad: NonNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
