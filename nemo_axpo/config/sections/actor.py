"""The policy and how it is trained: weights, optimizer, FP8, layout, memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from nemo_axpo.config.sections.base import Count, NonNegative, Positive, Section
from nemo_axpo.errors import rule_message


class ModelConfig(Section):
    """Where the policy's weights come from."""

    path: str | None = None
    """HF checkpoint directory; null: the tiny model of the embedded world with random weights (sft only)."""


class OptimizerConfig(Section):
    """AdamW with a constant learning rate after a linear warm-up."""

    lr: Positive = 2e-6
    """Learning rate after the warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.01
    """AdamW's: a step also shrinks weights by the learning rate times this."""
    clip_grad: NonNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""


class Fp8Config(Section):
    """FP8 products in the decoder layers, by Transformer Engine; weights, vision tower and output layer stay in bf16."""

    recipe: Literal["delayed", "tensorwise", "blockwise"] | None = None
    """How scales are found: from earlier maxima, from the tensor itself, per block of 128; null: no FP8."""
    format: Literal["e4m3", "hybrid"] = "hybrid"
    """e4m3 everywhere, or hybrid: e4m3 forward and e5m2 for gradients."""
    margin: Annotated[int, Field(ge=0)] = 0
    """Scales are smaller by 2^margin; delayed only."""
    amax_history_len: Count = 1024
    """Earlier maxima that are kept; delayed only."""
    amax_compute_algo: Literal["max", "most_recent"] = "max"
    """Which of the kept maxima counts; delayed only."""
    wgrad: bool = True
    """Gradients of weights are FP8 products too; delayed only."""
    first_last_layers_bf16: bool = False
    """The first and last decoder layers compute in bf16; not with delayed."""
    num_layers_at_start_in_bf16: Annotated[int, Field(ge=0)] = 1
    """So many at the beginning, with ``first_last_layers_bf16``."""
    num_layers_at_end_in_bf16: Annotated[int, Field(ge=0)] = 1
    """So many at the end, with ``first_last_layers_bf16``."""


class ActorConfig(Section):
    """How the policy is trained."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What it computes in; weights in bfloat16 have float32 masters in the optimizer."""
    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"
    """Decoder layers on plain torch or on Transformer Engine; auto: the latter where installed, for bf16 on CUDA."""
    fp8: Fp8Config = Fp8Config()
    micro_batch_tokens: Count = 32_768
    """Tokens of one forward and backward pass: rows times longest row if padded, tokens after sharing if thd."""
    packing: Literal["auto", "padded", "thd"] = "auto"
    """How attention gets its rows: padded blocks, or segments for a variable-length kernel; auto is thd where one is
    installed for the device and dtype."""
    num_minibatches: Count = 1
    """Optimizer steps per training step; with 1 the batch is exactly on-policy and old log-probs are not needed."""
    tensor_parallel: Count = 1
    """Ranks that share every layer; they should lie within a node."""
    pipeline_parallel: Count = 1
    """Stages of consecutive layers, each on its own ranks."""
    sequence_parallel: bool = False
    """Tensor-parallel ranks also share the tokens between matrix products; without tensor parallelism it does nothing."""
    context_parallel: Count = 1
    """Not supported: only 1."""
    virtual_pipeline: Count | None = None
    """Not supported: only null (megatron's interleaved schedule)."""
    peft: str | None = None
    """Not supported: only null (LoRA and other adapters)."""
    freeze_vision: bool = False
    """The vision tower and its mergers are not trained."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: parts of every decoder layer, or whole layers."""
    recompute_modules: tuple[Literal["core_attn", "mlp"], ...] = ("core_attn",)
    """Of selective recomputation."""
    recompute_method: Literal["uniform", "block"] = "uniform"
    """Of full recomputation: every unit of ``recompute_num_layers`` layers, or only so many layers of a stage."""
    recompute_num_layers: Count = 1
    """Layers of a unit (uniform), or layers that are recomputed (block)."""
    distributed_optimizer: bool = False
    """Optimizer state and master weights are sharded over the data-parallel replicas."""
    offload_optimizer: bool = False
    """Gradients go to the host, where Adam keeps its state and steps; GPU only, with the distributed optimizer."""
    logprob_chunk_tokens: Count | None = None
    """Trained tokens whose logits exist at the same time; null: as many as fit 512 MiB of float32 logits."""

    @property
    def model_parallel(self) -> int:
        """Ranks that hold one model together."""
        return self.tensor_parallel * self.pipeline_parallel

    def problems(self) -> Iterator[str]:
        """Keys that other trainers have and this one refuses."""
        if self.context_parallel != 1:
            rule = "actor.context_parallel must be 1: a row's attention is not split over ranks"
            cure = (
                "set it to 1; for long rows raise actor.tensor_parallel with actor.sequence_parallel=true, or recompute"
            )
            yield rule_message(rule, got=self.context_parallel, cure=cure)
        if self.virtual_pipeline is not None:
            rule = "actor.virtual_pipeline must be null: the interleaved schedule is not supported"
            cure = "set it to null; lower actor.micro_batch_tokens for more micro-batches and a smaller pipeline bubble"
            yield rule_message(rule, got=self.virtual_pipeline, cure=cure)
        if self.peft is not None:
            rule = "actor.peft must be null: LoRA and other adapters are not supported, all weights are trained"
            cure = (
                "set it to null; to save memory use actor.distributed_optimizer, actor.freeze_vision or actor.recompute"
            )
            yield rule_message(rule, got=self.peft, cure=cure)
