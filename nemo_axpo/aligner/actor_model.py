"""The actor of the algorithm ``axpo`` under NeMo-Aligner: its interface around our actor and engine.

Order of a step, as ``ReinforceTrainer`` calls it::

    prepare_for_inference   weights → engine
    infer …                 questions → rollouts
    plan                    scores of all replicas → what is resampled
    infer_continuations     the plan's thinking prefixes → continuations
    get_inference_log_probs of the rows of later mini-batches
    finish_inference
    prepare_for_training
    (prepare_for_training_step, get_loss_and_metrics, finish_training_step, optimizer step) × mini-batches
    finish_training
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from nemo_aligner.models.alignable_interface import AlignableGenerativeInterface
from torch import Tensor

from nemo_axpo import assembly
from nemo_axpo.aligner.generation import AgentGeneration
from nemo_axpo.aligner.rollout_rows import pack_rollouts
from nemo_axpo.aligner.rows import RowTable, pack_predictions, unpack_predictions, unpack_samples
from nemo_axpo.aligner.step_data import pack_step, regroup
from nemo_axpo.distributed.server_health import take_server_metrics
from nemo_axpo.errors import rule_message
from nemo_axpo.eval.evaluate import EvalResult, summarize
from nemo_axpo.job import memory_metrics
from nemo_axpo.loop import Experience, QuestionSource
from nemo_axpo.rollouts.eager import EagerResampling
from nemo_axpo.training_parts import TrainingParts
from nemo_axpo.types import (
    Question,
    ResamplePlan,
    Rollout,
    RolloutScore,
    TrainBatch,
    TrainingSample,
    group_rollouts,
)

Observer = Callable[[Experience, Sequence[TrainingSample], int], None]
"""Gets what a step sampled, this replica's samples, and the number of the step, from 1."""


class MegatronQwen3VLAXPOActorModel(AlignableGenerativeInterface):
    """One rank's policy. Every rank calls every method; ranks that do not sample get batches without rows from ``infer``."""

    # What NeMo-Aligner's helpers ask a NeMo model. Gradients are clipped in the optimizer's step.
    with_megatron_fused_adam = True
    with_distributed_adam = False
    use_mcore_dist_optim = False
    megatron_amp_O2 = False

    def __init__(self, parts: TrainingParts) -> None:
        self._parts = parts
        self.actor, self.loop = parts.actor, parts.loop
        self.tokenizer = AlignerTokenizer(parts.bench.renderer)
        self.generation = AgentGeneration(parts)
        self.rows = RowTable()
        """Side table of the step."""
        self.has_gradient = False
        """Whether the last loss had rows on any replica."""
        self.evaluation: EvalResult | None = None
        """The last validation."""
        self.observer: Observer | None = None
        """Told of every step once its rows have their credit."""
        self._sync_metrics: dict[str, float] = {}
        self._begin_stage()

    # ------------------------------------------------------------------------------------------------- inference
    def prepare_for_inference(self) -> None:
        """Brings the policy to the engine where it does not hold it yet."""
        self._begin_stage()
        # A validation between two steps has brought the weights already: the step that follows tells of it.
        self._sync_metrics = self.generation.refit(self) or self._sync_metrics
        self._parts.replicas.take_num_bytes()  # what was sent before is not the stage's

    @torch.no_grad()
    def infer(self, inference_batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """N rollouts of every question of the batch (of :func:`~nemo_axpo.aligner.data.collate_questions`).

        Columns: :func:`~nemo_axpo.aligner.rollout_rows.pack_rollouts`.
        """
        indices, is_validation = inference_batch["question"].tolist(), inference_batch["is_validation"]
        if not self._parts.replicas.is_leader:
            return self._packed(())
        questions = self._questions_at(indices, is_validation=is_validation)
        self._questions += questions
        self._index_of |= {question.question_id: index for question, index in zip(questions, indices, strict=True)}
        rollouts = self._validate(questions) if is_validation else self._explore(questions, first=indices[0])
        self._rollouts += rollouts
        return self._packed(rollouts)

    def plan(self) -> tuple[tuple[RolloutScore, ...], ResamplePlan]:
        """Scores of the whole step and what they make the algorithm resample. Every rank calls it."""
        return self.generation.generate(self.loop.agree(self.rollouts))

    @torch.no_grad()
    def infer_continuations(self, plan: ResamplePlan) -> dict[str, Tensor]:
        """K continuations of each of the plan's thinking prefixes that were sampled here; columns as of :meth:`infer`."""
        for sampling in self._samplings:
            self._continuations += self.generation.generate(sampling.continue_sources(plan))
        return self._packed(self._continuations)

    def finish_inference(self) -> None:
        """The engine may free what it does not need before the next step."""
        self.generation.free()

    @torch.no_grad()
    def get_inference_log_probs(self, response_tokens: Tensor, batch: Mapping[str, Tensor] | None = None) -> Tensor:
        """Float32 ``[R, S-1]``: log-probs of the policy at the sampling temperature, banned ids impossible.

        ``batch``: columns of the rows, which say what is trained (0 elsewhere) and show their images; without it every token
        of a row of plain text counts. ValueError for tokens of images without their rows.
        """
        samples = self._samples(response_tokens, batch)
        return pack_predictions(self.actor.logprobs(samples), width=response_tokens.shape[1])

    @torch.no_grad()
    def get_init_policy_logprobs(self, response_tokens: Tensor, batch: Mapping[str, Tensor] | None = None) -> Tensor:
        """As :meth:`get_inference_log_probs`, under the fixed reference policy; ValueError where the run keeps none.

        The trainer does not call it: the loss asks for the reference's log-probs itself, where it has a KL term.
        """
        samples = self._samples(response_tokens, batch)
        return pack_predictions(self.actor.reference_logprobs(samples), width=response_tokens.shape[1])

    # -------------------------------------------------------------------------------------------------- training
    def pack_experience(
        self, experience: Experience, *, index: int, multiple_of: int, min_width: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The rows that this replica trains in step ``index``, credited and cut into mini-batches by the main loop's rules.

        See :func:`~nemo_axpo.aligner.step_data.pack_step`. Beside them how even the replicas' shares are, and what this
        rank has sent.
        """
        _, samples = self.loop.give_credit(experience)
        if self.observer is not None:
            self.observer(experience, samples, index + 1)
        planned, minibatches = self.loop.minibatches(samples, index=index)
        imbalances = [minibatch.imbalance for minibatch in planned if minibatch.replica_of]
        metrics = {"batch/imbalance": sum(imbalances) / len(imbalances)} if imbalances else {}
        sent = self._parts.replicas.take_num_bytes()
        rows = pack_step(
            minibatches,
            table=self.rows,
            pad_id=self.tokenizer.eos_id,
            multiple_of=multiple_of,
            logprobs=lambda batch: self.get_inference_log_probs(batch["response_tokens"], batch),
            min_width=min_width,
        )
        return rows, metrics | {f"sent/{name}_bytes": float(count) for name, count in sent.items() if count}

    def minibatches(self, parts: Iterator[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The mini-batches of what ``fit`` cut into parts."""
        number = self._parts.config.actor.num_minibatches
        return regroup(parts, num_minibatches=number, pad_id=self.tokenizer.eos_id)

    def prepare_for_training(self) -> None:
        """Nothing to load: the optimizer stays where the actor was built with it."""

    def prepare_for_training_step(self) -> None:
        """Nothing to do: the trainer has zeroed the gradient."""

    def get_loss_and_metrics(self, batch: Mapping[str, Tensor], forward_only: bool) -> tuple[float, dict[str, float]]:
        """Loss of one mini-batch of all replicas and its metrics, equal on every rank; the gradient unless ``forward_only``.

        Without a row on any replica the loss is 0 and there is no gradient.
        """
        samples, number = unpack_samples(batch, table=self.rows), int(batch["minibatch"].max())
        num_others = int(batch["num_other_tokens"].sum())
        train_batch = TrainBatch(
            samples, num_planned_rollouts=self.loop.num_planned_rollouts, num_other_tokens=num_others
        )
        # In the first mini-batch old and current policy are the same.
        old = unpack_predictions(batch["logprobs"], batch) if number else None
        metrics = self.actor.compute_gradient(train_batch, loss=self._parts.loss, old_logprobs=old)
        self.has_gradient = bool(metrics["update/num_samples"]) and not forward_only
        if forward_only:
            self.actor.zero_gradient()
        return metrics.get("update/loss", 0.0), metrics

    def finish_training_step(self) -> None:
        """Nothing to do: megatron's schedule has summed the gradients over ranks."""

    def finish_training(self) -> None:
        """Nothing to unload."""

    def check(self) -> None:
        """The main loop's checks before anything is trained; the engine holds the policy."""
        self.generation.generate(self._parts.check())

    def close(self) -> None:
        """Ends the engine's and the verifiers' work."""
        self.generation.close()

    # ------------------------------------------------------------------------------------- what a stage has so far
    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """Ordinary rollouts of the stage sampled here."""
        return tuple(self._rollouts)

    def experience(self, continuations: Sequence[Rollout], **planned: Any) -> Experience:
        """The step as sampled; ``planned``: scores and plan of the whole step. Every rank calls it."""
        return self.loop.experience(self._questions, self._rollouts, continuations, **planned)

    @property
    def continuations(self) -> tuple[Rollout, ...]:
        """Of the stage, sampled here."""
        return tuple(self._continuations)

    def stage_metrics(self) -> dict[str, float]:
        """Of the last transfer of weights, of the servers since the last call, and of memory so far. Every rank calls it."""
        servers = take_server_metrics(self._parts.engine, replicas=self._parts.replicas)
        return {**self._sync_metrics, **servers, **memory_metrics(self._parts.replicas)}

    def evaluate(self) -> EvalResult:
        """The validation rollouts of all replicas reduced to rates. Every rank calls it."""
        groups = group_rollouts(self._questions, self._rollouts)
        k = self._parts.config.eval.num_rollouts
        self.evaluation = summarize(groups, k=k, positions=self._index_of, replicas=self._parts.replicas)
        return self.evaluation

    def _begin_stage(self) -> None:
        self.rows.clear()
        self._parts.bench.images.retain(())
        self._questions: list[Question] = []
        self._index_of: dict[str, int] = {}
        self._rollouts: list[Rollout] = []
        self._continuations: list[Rollout] = []
        self._row_of: dict[str, int] = {}
        self._samplings: list[EagerResampling] = []

    def _questions_at(self, indices: Sequence[int], *, is_validation: bool) -> list[Question]:
        stream = self._held_out if is_validation else self._parts.questions
        return [question for index in indices for question in stream.take(index, 1)]

    @cached_property
    def _held_out(self) -> QuestionSource:
        """The questions that every evaluation of the config asks."""
        config, images = self._parts.config, self._parts.bench.images
        return assembly.build_questions(config, stream="eval", seed=config.eval.seed, images=images)

    def _explore(self, questions: Sequence[Question], *, first: int) -> tuple[Rollout, ...]:
        step = first // self._parts.config.data.num_questions_per_step
        sampling = self.loop.sampling(questions, index=step)
        self._samplings.append(sampling)
        return self.generation.generate(sampling.roll_out())

    def _validate(self, questions: Sequence[Question]) -> tuple[Rollout, ...]:
        section = self._parts.config.eval
        producer = assembly.build_producer(
            self._parts.config, bench=self._parts.bench, engine=self._parts.engine, temperature=section.temperature
        )
        work = producer.run_rollouts(questions, num_rollouts=section.num_rollouts, seed=section.seed)
        return self.generation.generate(work)

    def _packed(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        return pack_rollouts(
            rollouts,
            table=self.rows,
            rows=self._row_of,
            questions=self._index_of,
            pad_id=self.tokenizer.eos_id,
            temperature=self._parts.config.rollout.temperature,
        )

    def _samples(self, tokens: Tensor, batch: Mapping[str, Tensor] | None) -> list[TrainingSample]:
        if batch is not None:
            return list(unpack_samples(batch, table=self.rows))
        ids = self._parts.bench.hf_config
        if bool(torch.isin(tokens, torch.tensor([ids.image_token_id, ids.video_token_id])).any()):
            rule = "rows that show images need the batch they are from, which says which images"
            raise ValueError(rule_message(rule, got="tokens alone", cure="pass the batch too"))
        return [self._plain_sample(row) for row in tokens.tolist()]

    def _plain_sample(self, tokens: list[int]) -> TrainingSample:
        zeros, mask = (0.0,) * len(tokens), (False,) + (True,) * (len(tokens) - 1)
        temperature = self._parts.config.rollout.temperature
        return TrainingSample("row", "row", tuple(tokens), mask, zeros, zeros, temperature=temperature)


class AlignerTokenizer:
    """What NeMo-Aligner's trainers ask a tokenizer."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self.eos_id = renderer.special.im_end

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Text with its special tokens."""
        return self._renderer.decode(tuple(ids))
