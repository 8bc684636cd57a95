"""Memory of the rank that needs most on each pipeline stage, by kind, in bytes.

What is exact: weights, reference, gradients, optimizer, engine (but for alignment of buffers, below 0.1% at real sizes).
What is counted tensor by tensor: activations. What is estimated: logits and workspace, the temporaries of the largest
operation.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.plan.activations import FLOAT32, stage_activations
from nemo_axpo.plan.batch import StepArithmetic
from nemo_axpo.plan.engine import EngineMemory
from nemo_axpo.plan.parameters import rank_parameters
from nemo_axpo.plan.settings import TrainerSettings
from nemo_axpo.plan.sizes import ModelSizes

_INDEX_BYTES_PER_TOKEN = 96
"""Ids, three positions, attention rows, targets, advantages and log-probs of one token of a micro-batch."""

_MAX_CHUNK_LOGITS = 2**27
"""Logits of a chunk where the config does not say, as in ``models.vocab_parallel``."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank; 0 where a kind does not exist there."""

    weights: float
    reference: float
    fp8_weights: float
    """Rounded copies of the decoder's projections and their transposes, of policy and reference; an upper bound."""
    gradients: float
    """Megatron's buffer, float32 whatever the weights are."""
    optimizer: float
    """Float32 master weights (bf16 training only) and Adam's two moments."""
    engine_weights: float
    engine_cache: float
    inputs: float
    """Micro-batches of one optimizer step: indices of all, pixels of those that run."""
    activations_language: float
    activations_vision: float
    logits: float
    workspace: float
    """Temporaries of the backward pass, and what recomputation rebuilds at a time."""
    communication: float
    """Hidden states between pipeline stages, gathered sequences."""
    after_backward: float
    """When all activations are gone: the embedding's dense gradient, then temporaries of the optimizer step."""

    @property
    def held(self) -> float:
        """What is there at any time."""
        trainer = self.weights + self.reference + self.fp8_weights + self.gradients + self.optimizer
        return trainer + self.engine_weights + self.engine_cache

    @property
    def total(self) -> float:
        """Peak: what is held, and the larger of the forward-backward pass and what follows it.

        Logits are gone when the backward pass reaches the layers, so they and the workspace do not add up.
        """
        kept = self.activations_language + self.activations_vision + self.communication
        passing = kept + max(self.logits, self.workspace)
        return self.held + self.inputs + max(passing, self.after_backward)


def stage_memory(
    sizes: ModelSizes, *, settings: TrainerSettings, step: StepArithmetic, engine: EngineMemory, stage: int
) -> RankMemory:
    """The fullest rank of pipeline stage ``stage``: on the first one that is the leader, which holds the engine."""
    layout = {"tensor_parallel": settings.tensor_parallel, "pipeline_parallel": settings.pipeline_parallel}
    parameters = rank_parameters(sizes, stage=stage, **layout)
    trained = parameters.total - (parameters.vision if settings.freezes_vision else 0)
    activations = stage_activations(sizes, settings=settings, shape=step.microbatch, stage=stage)
    in_flight = min(settings.pipeline_parallel - stage, step.num_microbatches)
    is_last = stage == settings.pipeline_parallel - 1
    return RankMemory(
        weights=parameters.total * settings.value_bytes,
        reference=parameters.total * settings.value_bytes * settings.has_reference,
        fp8_weights=2.0 * parameters.language * (1 + settings.has_reference) if settings.has_fp8 else 0.0,
        gradients=trained * FLOAT32,
        optimizer=optimizer_bytes(trained, settings=settings),
        engine_weights=engine.weights if stage == 0 else 0.0,
        engine_cache=engine.cache if stage == 0 else 0.0,
        inputs=_input_bytes(sizes, step=step, num_held=step.num_microbatches if settings.is_on_host else in_flight),
        activations_language=in_flight * (activations.language + activations.tables),
        activations_vision=in_flight * activations.vision,
        logits=logit_bytes(sizes, settings=settings, num_loss_tokens=step.microbatch.num_loss_tokens)
        if is_last
        else 0.0,
        workspace=activations.recomputed + _workspace(sizes, settings=settings, step=step),
        communication=_communication(sizes, settings=settings, step=step, stage=stage),
        after_backward=max(
            _last_gradient(sizes, settings=settings, stage=stage), _optimizer_scratch(trained, settings=settings)
        ),
    )


def optimizer_bytes(num_trained: int, *, settings: TrainerSettings) -> float:
    """Adam's state of ``num_trained`` parameters; the distributed optimizer divides it by the replicas."""
    if settings.memory.offload_optimizer:
        return 0.0  # on the host
    per_parameter = 2 * FLOAT32 + (FLOAT32 if settings.value_bytes < FLOAT32 else 0)
    return num_trained * per_parameter / settings.optimizer_shards


def _optimizer_scratch(num_trained: int, *, settings: TrainerSettings) -> float:
    """Adam's denominators of all parameters at once."""
    return 0.0 if settings.memory.offload_optimizer else FLOAT32 * num_trained / settings.optimizer_shards


def _input_bytes(sizes: ModelSizes, *, step: StepArithmetic, num_held: int) -> float:
    """Indices of all micro-batches, pictures of those that run; on a CPU the others' pictures wait there too."""
    shape, vision = step.microbatch, sizes.vision
    pixels = shape.num_image_tokens * vision.patches_per_token * vision.patch_values * FLOAT32
    return num_held * pixels + step.num_microbatches * shape.num_tokens * _INDEX_BYTES_PER_TOKEN


def logit_bytes(sizes: ModelSizes, *, settings: TrainerSettings, num_loss_tokens: int) -> float:
    """Temporaries of at most ``logprob_chunk_tokens`` loss tokens at a time.

    Forward: shifted logits, probabilities and their product in float32, and the logits as they come where one chunk holds
    them all. Backward: gradients of the logits, and the projection's as a dense tensor (float32 chunks add to the sum in
    place). Source: ``models.vocab_parallel``.
    """
    b, width = settings.value_bytes, sizes.vocab // settings.tensor_parallel
    chunk = settings.memory.logprob_chunk_tokens or max(1, _MAX_CHUNK_LOGITS // width)
    dense = b * width * sizes.hidden
    if num_loss_tokens <= chunk:
        return max((3 * FLOAT32 + b) * num_loss_tokens * width, 2 * b * num_loss_tokens * width + dense)
    backward = (FLOAT32 + b) * chunk * width + (dense if b < FLOAT32 else 0)
    return max(3 * FLOAT32 * chunk * width, backward)


def _workspace(sizes: ModelSizes, *, settings: TrainerSettings, step: StepArithmetic) -> float:
    """Gradients in the backward pass of an MLP on top of what was kept: where the product of ``silu(gate)`` and ``up`` is
    taken apart, three of the inner width less the product itself, which is free by then; and three hidden states."""
    b, tokens = settings.value_bytes, step.microbatch.num_tokens
    return tokens * b * (2 * sizes.intermediate / settings.tensor_parallel + 3 * sizes.hidden)


def _last_gradient(sizes: ModelSizes, *, settings: TrainerSettings, stage: int) -> float:
    """The embedding's dense gradient, the last tensor of the backward pass."""
    return settings.value_bytes * sizes.vocab * sizes.hidden / settings.tensor_parallel if stage == 0 else 0.0


def _communication(sizes: ModelSizes, *, settings: TrainerSettings, step: StepArithmetic, stage: int) -> float:
    """Hidden states received and sent stay until their backward pass; sequence parallelism gathers whole sequences."""
    hidden = step.microbatch.num_tokens * settings.value_bytes * sizes.hidden
    in_flight = min(settings.pipeline_parallel - stage, step.num_microbatches)
    borders = (stage > 0) + (stage < settings.pipeline_parallel - 1)
    gathered = hidden if settings.sequence_parallel else 0.0
    return borders * (in_flight + 1) * hidden * settings.sequence_share + gathered
