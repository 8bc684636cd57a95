"""The arithmetic of one training step: rollouts, resampling budget, rows, worst-case tokens, micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.algorithms.axpo import Axpo
from nemo_axpo.algorithms.base import get_algorithm
from nemo_axpo.config.checks import algorithm_arguments
from nemo_axpo.config.schema import Config
from nemo_axpo.plan.activations import MicrobatchShape


@dataclass(frozen=True)
class StepArithmetic:
    """One training step of the whole job in the worst case: every row as long as it may be, every prefix used."""

    num_rollouts: int
    """B·N."""
    num_prefixes: int
    """floor(r·B·N / K); 0 where the algorithm resamples nothing."""
    num_continuations: int
    """K continuations of each of these prefixes."""
    num_rows: int
    num_tokens: int
    """Rows times ``rollout.max_row_tokens``."""
    rows_per_microbatch: int
    num_microbatches: int
    """Of one replica in one optimizer step."""
    microbatch: MicrobatchShape

    def bubble(self, pipeline_parallel: int) -> float:
        """Share of an optimizer step in which a pipeline stage waits under 1F1B: (p - 1) / (m + p - 1)."""
        return (pipeline_parallel - 1) / (self.num_microbatches + pipeline_parallel - 1)


def step_arithmetic(config: Config, *, data_parallel: int, image_share: float) -> StepArithmetic:
    """Of ``config`` with ``data_parallel`` replicas; ``image_share`` of a micro-batch's tokens are image tokens.

    ValueError where the algorithm's settings make no sense together.
    """
    algorithm = get_algorithm(config.algorithm.name)(**algorithm_arguments(config))
    prefixes = algorithm.quota if isinstance(algorithm, Axpo) else 0
    continuations = prefixes * algorithm.num_continuations if prefixes else 0
    rollouts = config.data.num_questions_per_step * algorithm.num_rollouts
    rows = rollouts + continuations
    row_tokens = config.rollout.max_row_tokens
    per_microbatch = max(1, config.actor.micro_batch_tokens // row_tokens)
    per_replica = _ceil(rows, config.actor.num_minibatches * data_parallel)
    return StepArithmetic(
        num_rollouts=rollouts,
        num_prefixes=prefixes,
        num_continuations=continuations,
        num_rows=rows,
        num_tokens=rows * row_tokens,
        rows_per_microbatch=per_microbatch,
        num_microbatches=_ceil(per_replica, per_microbatch),
        microbatch=_microbatch(config, num_tokens=min(config.actor.micro_batch_tokens, per_replica * row_tokens),
                               image_share=image_share),
    )  # fmt: skip


def warm_start_arithmetic(config: Config, *, data_parallel: int, image_share: float) -> StepArithmetic:
    """One optimizer step of ``nemo-axpo sft``: trajectories instead of rollouts, and nothing is resampled."""
    rows, row_tokens = config.sft.batch_size, config.sft.max_row_tokens
    per_microbatch = max(1, config.actor.micro_batch_tokens // row_tokens)
    per_replica = _ceil(rows, data_parallel)
    num_tokens = min(config.actor.micro_batch_tokens, per_replica * row_tokens)
    return StepArithmetic(
        num_rollouts=0,
        num_prefixes=0,
        num_continuations=0,
        num_rows=rows,
        num_tokens=rows * row_tokens,
        rows_per_microbatch=per_microbatch,
        num_microbatches=_ceil(per_replica, per_microbatch),
        microbatch=_microbatch(config, num_tokens=num_tokens, image_share=image_share),
    )


def _microbatch(config: Config, *, num_tokens: int, image_share: float) -> MicrobatchShape:
    """A full micro-batch; no more tokens carry loss than the turns of its rows may sample."""
    rollout = config.rollout
    sampled = min(1.0, rollout.max_turns * rollout.max_new_tokens / rollout.max_row_tokens)
    return MicrobatchShape(num_tokens, round(num_tokens * image_share), round(num_tokens * sampled))


def _ceil(number: int, parts: int) -> int:
    return -(-number // parts)
