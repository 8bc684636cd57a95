"""The actor: the policy being trained, its fixed reference, and its optimizer, on megatron-core.

    logprobs, reference_logprobs    samples → log-probs of their trained tokens
    update                          samples → one optimizer step → metrics
    hf_tensors, save_hf             weights → engine, checkpoint for transformers
    sharded_state, state_values     everything a resumed run needs, and load_state to restore it

The same object runs supervised and policy training: the loss is an argument and the actor does not know which it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nemo_axpo.actors import megatron_setup  # installs the CPU shim before megatron is imported below

# isort: split
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from torch import Tensor

from nemo_axpo.actors import optimizer as adam
from nemo_axpo.actors import state, training_step
from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.microbatches import Microbatch, build_microbatch, plan_microbatches
from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.actors.packing import FeatureStore, PackingForm, VisionTokens
from nemo_axpo.actors.precision import LayerSettings
from nemo_axpo.actors.update_step import UpdateStep, count_step, step_metrics
from nemo_axpo.checkpoints.fingerprint import fingerprint
from nemo_axpo.errors import CheckpointError, rule_message
from nemo_axpo.losses.base import Loss
from nemo_axpo.models.qwen3_vl import hf_mapping, loading
from nemo_axpo.models.qwen3_vl.checkpoint_reader import CheckpointReader
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.model import build_stage
from nemo_axpo.models.qwen3_vl.quantization import token_multiple
from nemo_axpo.models.qwen3_vl.thd_attention import has_fast_kernel
from nemo_axpo.models.vocab_parallel import OutputStates, VocabShard
from nemo_axpo.types import TrainBatch, TrainingSample

_ONE_PROCESS, _PLAIN, _ANY_LAYERS = ParallelLayout(), MemorySettings(), LayerSettings()


class Actor:
    """One rank of the trainer.

    A replica is the ranks that together hold one model. Every rank of the job calls every method; the ranks of a replica
    pass the same samples, other replicas theirs, possibly none.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        image_store: FeatureStore,
        banned_token_ids: Sequence[int],
        optimizer: AdamSettings,
        micro_batch_tokens: int = 32_768,
        packing: PackingForm | Literal["auto"] = "auto",
        layout: ParallelLayout = _ONE_PROCESS,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        keep_reference: bool = True,
        memory: MemorySettings = _PLAIN,
        freeze_vision: bool = False,
        layers: LayerSettings = _ANY_LAYERS,
    ) -> None:
        """Loads a Hugging Face checkpoint directory; its weights are also the reference policy.

        ``banned_token_ids``: what the engine never samples. ``micro_batch_tokens``: of one forward and
        backward pass (see :func:`plan_microbatches`). ``packing``: how attention gets its rows; ``auto`` is thd where a
        fast kernel for it is installed, else padded. ``device``: proven on the CPU, not yet run on a GPU. ``keep_reference=False`` saves the
        second copy of the weights where no loss needs it. ``freeze_vision``: the vision tower and its mergers are not
        trained. ``layers``: what the decoder is built of, and FP8. ValueError for a checkpoint that is broken, of another
        model, or that the layout does not divide, and for a CPU in a process that sees a GPU.
        """
        self._device = torch.device(device)
        megatron_setup.check_device(self._device)
        memory.check_device(self._device.type)
        megatron_setup.initialize(layout, device=self._device, seed=seed)
        self.checkpoint, self.hf_config = Path(checkpoint), loading.load_hf_config(checkpoint)
        kind = str(dtype).removeprefix("torch.")
        fields = {**vars(layout), **memory.transformer_fields()}
        fields |= layers.transformer_fields(self._device.type, dtype=kind)
        self._config = transformer_config(self.hf_config, dtype=dtype, **fields)
        self._image_store, self._micro_batch_tokens, self._settings = image_store, micro_batch_tokens, optimizer
        self._form = packing_form(packing, device=self._device, dtype=dtype)
        self._vision = VisionTokens(
            self.hf_config.image_token_id,
            self.hf_config.video_token_id,
            self.hf_config.vision_config.spatial_merge_size,
        )
        self._shard = _vocab_shard(
            self.hf_config.text_config.vocab_size,
            banned_ids=banned_token_ids,
            chunk_tokens=memory.logprob_chunk_tokens,
        ).to(self._device)
        self._model = self._load_stage()
        self._reference = self._load_stage().requires_grad_(False) if keep_reference else None
        if freeze_vision and self._model.pre_process:
            self._model.visual.requires_grad_(False)
        self._ddp = _wrap(self._model, config=self._config, memory=memory)
        self._optimizer = adam.build_optimizer(self._ddp, settings=optimizer, dtype=dtype, memory=memory)
        self._fingerprint = fingerprint(checkpoint)
        self.policy_version = 0

    def logprobs(self, samples: Sequence[TrainingSample]) -> list[Tensor]:
        """Per sample float32 ``[T]`` on the CPU: log-probs of the trained tokens under the policy, 0.0 elsewhere.

        ``samples`` are this replica's; every rank of the replica gets the result. Natural log of the distribution
        sampled from: temperature applied, banned ids impossible.
        """
        return self._score(self._ddp, samples)

    def reference_logprobs(self, samples: Sequence[TrainingSample]) -> list[Tensor]:
        """As :meth:`logprobs`, under the fixed reference policy."""
        return self._score(self._require_reference(), samples)

    def update(
        self,
        batch: TrainBatch,
        *,
        loss: Loss,
        lr: float | None = None,
        old_logprobs: Sequence[Tensor] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on the batches of all replicas; raises ``policy_version`` by one and returns metrics.

        ``batch`` holds this replica's samples; normaliser and metrics are of the whole job, equal on every rank.
        ``old_logprobs``: per sample ``[T]``, the policy before the training step (:meth:`logprobs`); None where this is
        the first optimizer step on these samples, so that old and current policy are the same. The reference's
        log-probs are computed here if ``loss`` needs them. ``lr`` replaces the settings' rate. Where no replica has a
        trained token there is no gradient: no step is taken, on any rank. FloatingPointError where the gradient is not finite;
        the weights are then unchanged.
        """
        lr = self._settings.lr if lr is None else lr
        metrics = self.compute_gradient(batch, loss=loss, old_logprobs=old_logprobs)
        grad_norm = self.take_step(lr=lr) if metrics["update/num_samples"] else 0.0
        return {**metrics, "update/grad_norm": grad_norm, "update/lr": lr}

    def compute_gradient(
        self, batch: TrainBatch, *, loss: Loss, old_logprobs: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """The first half of :meth:`update`: the gradient of the whole job in place of any earlier one; its metrics.

        ``update/num_samples`` is 0 where no replica has a sample: there is then no gradient and no other metric.
        """
        counts = count_step(batch, device=self._device)
        if not counts.num_samples:
            return {"update/num_samples": 0.0}
        microbatches = self._microbatches(batch.samples)
        reference = self._reference_rows(microbatches) if loss.needs_reference else [None] * len(microbatches)
        finish = UpdateStep(
            microbatches,
            loss,
            loss.normalizer_of(counts),
            self._shard,
            old_logprobs=old_logprobs,
            reference_BS=reference,
        )
        self.zero_gradient()
        results = training_step.run_schedule(self._ddp, microbatches, finish=finish, forward_only=False)
        is_reporter = parallel_state.get_tensor_model_parallel_rank() == 0
        metrics = step_metrics(results, loss=loss, is_reporter=is_reporter, device=self._device)
        return {**metrics, "update/num_samples": float(counts.num_samples)}

    def take_step(self, *, lr: float) -> float:
        """The second half of :meth:`update`: the optimizer step on the gradient computed last; its norm before clipping."""
        grad_norm = adam.step(self._optimizer, settings=self._settings, lr=lr)
        self.policy_version += 1
        return grad_norm

    def zero_gradient(self) -> None:
        """Forgets the gradient."""
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()  # the step left .grad an alias of the buffer: autograd would add to it twice

    def hf_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The policy under its Hugging Face names, whole tensors, one at a time; may share memory with the weights."""
        return hf_mapping.hf_tensors(self._model, hf_config=self.hf_config)

    def save_hf(self, path: str | Path) -> Path:
        """Writes a checkpoint directory that transformers loads, with the tokenizer and processor it came with."""
        return loading.save_hf_checkpoint(path, self.hf_tensors(), hf_config=self.hf_config, source=self.checkpoint)

    def sharded_state(self, *, is_loading: bool = False) -> dict[str, state.Sharded]:
        """This rank's part of weights and optimizer state, by names that any layout shares; every rank calls it.

        The tensors are the live ones: write or copy them before the next update. ``is_loading``: to be loaded into.
        """
        return state.sharded_state(self._model, self._optimizer, is_loading=is_loading)

    def state_values(self) -> dict[str, Any]:
        """The rest of what a resumed run needs, as JSON values."""
        return {
            "policy_version": self.policy_version,
            "optimizer_step": state.optimizer_step(self._optimizer),
            "model_fingerprint": self._fingerprint,
        }

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restores :meth:`state_values` and what was loaded for :meth:`sharded_state`.

        CheckpointError where the weights in the checkpoint directory, which are the reference policy, are not those the
        run started from.
        """
        if values["model_fingerprint"] != self._fingerprint:
            rule = "a run resumes with the weights it started from, which are its reference policy"
            got = f"other files in {self.checkpoint}"
            raise CheckpointError(rule_message(rule, got=got, cure="restore them, or start a new run"))
        state.load_sharded_state(self._model, self._optimizer, tensors)
        state.set_optimizer_step(self._optimizer, int(values["optimizer_step"]))
        self.policy_version = int(values["policy_version"])

    def _load_stage(self) -> Any:
        model = build_stage(self.hf_config, config=self._config, device=self._device)
        hf_mapping.load_weights(model, CheckpointReader(self.checkpoint), hf_config=self.hf_config)
        return model

    def _require_reference(self) -> Any:
        if self._reference is None:
            rule = "the reference policy's log-probs need its weights"
            raise ValueError(
                rule_message(rule, got="keep_reference=False", cure="build the actor with it, or kl_coef=0")
            )
        return self._reference

    def _microbatches(self, samples: Sequence[TrainingSample]) -> list[Microbatch]:
        return [
            build_microbatch(
                samples,
                indices,
                image_store=self._image_store,
                vision=self._vision,
                multiple_of=token_multiple(self._config),
                device=self._device,
                form=self._form,
            )
            for indices in plan_microbatches(
                samples,
                max_tokens=self._micro_batch_tokens,
                form=self._form,
                image_token_id=self._vision.image_token_id,
            )
        ]

    def _forward(self, model: Any, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """Log-probs ``[L]`` of every micro-batch; none on pipeline stages before the last."""

        def finish(number: int, output: OutputStates) -> tuple[Tensor, dict[str, Any]]:
            values_L, _ = training_step.microbatch_logprobs(microbatches[number], output, shard=self._shard)
            return values_L.sum(), {"logprobs": values_L}

        results = training_step.run_schedule(model, microbatches, finish=finish, forward_only=True)
        return [result["logprobs"] for result in results]

    def _score(self, model: Any, samples: Sequence[TrainingSample]) -> list[Tensor]:
        if not samples:
            return []
        microbatches = self._microbatches(samples)
        sizes = [microbatch.target_L.numel() for microbatch in microbatches]
        values = self._forward(model, microbatches)
        shared = training_step.share_with_stages(
            torch.cat(values) if values else None, size=sum(sizes), device=self._device
        )
        rows: dict[int, Tensor] = {}
        for microbatch, values_L in zip(microbatches, shared.split(sizes), strict=True):
            rows.update(zip(microbatch.sample_B, microbatch.spread(values_L).cpu(), strict=True))
        return [rows[number][: len(sample.token_ids)] for number, sample in enumerate(samples)]

    def _reference_rows(self, microbatches: Sequence[Microbatch]) -> list[Tensor | None]:
        """Reference log-probs ``[B, S]`` per micro-batch; None where this stage has no logits."""
        values = self._forward(self._require_reference(), microbatches)
        if not values:
            return [None] * len(microbatches)
        return [microbatch.spread(values_L) for microbatch, values_L in zip(microbatches, values, strict=True)]


def packing_form(packing: PackingForm | Literal["auto"], *, device: torch.device, dtype: torch.dtype) -> PackingForm:
    """What ``auto`` means on ``device``."""
    if packing != "auto":
        return packing
    return "thd" if has_fast_kernel(device, dtype=dtype) else "padded"


def _vocab_shard(vocab_size: int, *, banned_ids: Sequence[int], chunk_tokens: int | None) -> VocabShard:
    return VocabShard.of(
        vocab_size,
        banned_ids=banned_ids,
        rank=parallel_state.get_tensor_model_parallel_rank(),
        size=parallel_state.get_tensor_model_parallel_world_size(),
        group=parallel_state.get_tensor_model_parallel_group(),
        chunk_tokens=chunk_tokens,
    )


def _wrap(model: Any, *, config: Any, memory: MemorySettings) -> DistributedDataParallel:
    """Megatron's DDP: gradients of all micro-batches gather in one float32 buffer, summed over replicas at the end.

    The sum is not overlapped with the backward pass: megatron then wants a gradient of every parameter in every last
    micro-batch, which the vision tower has only where that micro-batch shows an image.
    """
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=memory.distributed_optimizer
    )
    ddp = DistributedDataParallel(config, ddp_config, model)
    config.finalize_model_grads_func = training_step.sum_model_grads
    return ddp.train()
