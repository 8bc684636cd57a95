"""AXPO as a trainer of NeMo-Aligner: ``ReinforceTrainer.fit`` with resampling, credit and mini-batches of whole questions.

What differs from ``ReinforceTrainer``, and why:

* ``_run_inference``: rollouts of an agent; then the continuations that the algorithm plans for the whole step.
* ``generate_reinforce_data``: the main loop's credit, balance and mini-batches. Rows move to the replica that trains them;
  ``ReinforceRolloutBatch.chunk`` would let every replica train on the whole batch.
* Groups are found by question id: equal prompts with other pictures are other questions.
* ``consumed_samples`` counts questions; NeMo-Aligner counts rollouts, N times as many, and so skips data.
* ``run_training``: puts together again what ``fit`` cut, as mini-batches differ in size.
* ``generate_rollouts``: a checkpoint that threads have written meanwhile is published before the next step.
* ``run_validation``: where none is due, nothing is sampled: ``fit`` saves only at steps at which it may validate, and would
  validate before it saves where a queue's signal leaves it minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nemo_axpo.aligner import environment

environment.prepare()  # before NeMo-Aligner's trainers are imported below

# isort: split
import torch
from megatron.core.utils import divide
from nemo_aligner.algorithms.reinforce import (
    ReinforceRolloutBatch,
    ReinforceTrainer,
    compute_num_rollout_microbatches,
)
from nemo_aligner.utils import parallel_state
from torch import Tensor

from nemo_axpo.aligner.reward_model import VerifierRewardModel
from nemo_axpo.aligner.rows import concatenate
from nemo_axpo.errors import rule_message
from nemo_axpo.loop import Experience, experience_metrics
from nemo_axpo.types import Rollout


class AXPOTrainer(ReinforceTrainer):
    """Takes ``ReinforceTrainer``'s twelve arguments; ``model`` is a ``MegatronQwen3VLAXPOActorModel``.

    ``rm`` is a ``VerifierRewardModel``, ``optimizer`` a ``PolicyOptimizer``, ``scheduler`` a ``WarmupScheduler``,
    ``ckpt_callback`` a ``CheckpointCallback``; ``cfg`` is ``trainer.axpo`` as
    :func:`~nemo_axpo.aligner.trainer_section.trainer_section` makes it. The algorithm (AXPO or GRPO) is the model's.
    """

    def __init__(
        self,
        cfg: Any,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        train_dataloader_builder: Any,
        val_dataloader_builder: Any,
        collate_fn: Any,
        rm: Any,
        batch_iterator_cls: Any,
        logger: Any,
        ckpt_callback: Any,
        run_timer: Any,
    ) -> None:
        if not isinstance(rm, VerifierRewardModel):
            rule = "rm must be a VerifierRewardModel: resampling starts on its rewards while other rollouts still run"
            raise TypeError(rule_message(rule, got=type(rm).__name__, cure="register a verifier (model.axpo.rewards)"))
        super().__init__(
            cfg=cfg,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            train_dataloader_builder=train_dataloader_builder,
            val_dataloader_builder=val_dataloader_builder,
            collate_fn=collate_fn,
            rm=rm,
            batch_iterator_cls=batch_iterator_cls,
            logger=logger,
            ckpt_callback=ckpt_callback,
            run_timer=run_timer,
        )
        # The loss itself reads the reference policy; it takes no part in rewards.
        self.compute_init_policy_kl = False
        self._experience: Experience | None = None

    def _run_inference(
        self, dataloader_builder: Any, consumed_samples: int, is_validation: bool
    ) -> tuple[ReinforceRolloutBatch, dict[str, Any]]:
        """Rollouts of the step's questions and, in training, the continuations of the plan.

        The rows sampled by this rank, and metrics of the whole step, equal on every rank.
        """
        batches, num_questions = self._infer(dataloader_builder, consumed_samples)
        if is_validation:
            metrics = _present(self.model.evaluate().metrics())
            metrics["rewards"] = metrics.get("pass@1", 0.0)
            rows = self.model.rollouts
        else:
            with self.timer("resample"):
                scores, plan = self.model.plan()
                batches.append(self.model.infer_continuations(plan))
            rows = self.model.rollouts + self.model.continuations
            self._experience = self.model.experience(self.model.continuations, scores=scores, plan=plan)
            metrics = _present(experience_metrics(self._experience))
            metrics["rewards"] = metrics.get("rollout/accuracy", 0.0)
        rewards = [self.rm.infer_rm(batch).result().squeeze(1) for batch in batches]
        rollout_batch = concatenate([dict(batch) for batch in batches], pad_id=self.model.tokenizer.eos_id)
        rollout_batch["rewards"] = torch.cat(rewards)
        metrics |= {"table": self._table(rows), "rollout_size": num_questions}
        return ReinforceRolloutBatch(rollout_batch), metrics

    def generate_reinforce_data(self, rollout_batch: ReinforceRolloutBatch) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The rows that this replica trains, credited; see :func:`nemo_axpo.aligner.step_data.pack_step`. Metrics of the step.

        ``rollout_batch``: what ``_run_inference`` returned last.
        """
        experience, self._experience = self._experience, None
        assert experience is not None, "credit is given once, to the rollouts of the last inference"
        data, metrics = self.model.pack_experience(
            experience,
            index=self.step,
            multiple_of=divide(self.cfg.model_gbs, parallel_state.get_data_parallel_world_size()),
            min_width=self.rollout_batch_seq_length,
        )
        return data, metrics | self.model.stage_metrics()

    def generate_rollouts(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]:
        """The next step's rows; what the step before left is on disk."""
        self.ckpt_callback.between_steps()
        return super().generate_rollouts()

    def run_validation(self) -> dict[str, Any]:
        """Rates of the held-out questions; without sampling nothing but an empty table where no evaluation is due."""
        every = self.cfg.eval_every
        is_due = not 0 < self.step < self.max_steps or (every and self.step % every == 0)
        return super().run_validation() if is_due else {"table": self._table(())}

    def run_training(self, dataloader_iter: Iterable[dict[str, Tensor]]) -> tuple[float, dict[str, Any]]:
        """An optimizer step for every mini-batch."""
        return super().run_training(self._logged(self.model.minibatches(dataloader_iter)))

    def _logged(self, minibatches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The mini-batches; after the step on each its gradient's norm is logged, which ``fit`` asks before the step."""
        for minibatch in minibatches:
            yield minibatch
            norm = {"update/grad_norm": self.optimizer.grad_norm}
            self.logger.log_metrics(norm, step=self.step, prefix="train_optim/")

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores the counts, and the learning rate that follows from them."""
        super().load_state_dict(state_dict)
        self.scheduler.move_to(self.reinforce_optimization_step)

    def _infer(self, dataloader_builder: Any, consumed_samples: int) -> tuple[list[dict[str, Tensor]], int]:
        """Batches of rollouts, and the questions of all replicas together."""
        dataloader = dataloader_builder(consumed_samples=consumed_samples)
        iterator = self.batch_iterator_cls(
            iter(dataloader.batch_sampler),
            compute_num_rollout_microbatches(dataloader),
            dataloader.dataset,
            self.collate_fn,
        )
        with self.timer("generate"):
            batches = [self.model.infer(batch) for batch in iterator]
        return batches, dataloader.batch_sampler.global_batch_size

    def _table(self, rows: tuple[Rollout, ...]) -> dict[str, Any]:
        """A row for the log's table; empty where this rank sampled none."""
        if not rows:
            return {"reward": 0.0, "prompt": "", "response": ""}
        row, prompt_length = rows[0], len(rows[0].turns[0].prompt_delta.token_ids)
        text = self.model.tokenizer.ids_to_text
        prompt, response = text(row.token_ids[:prompt_length]), text(row.token_ids[prompt_length:])
        return {"reward": row.reward, "prompt": prompt, "response": response}


def _present(metrics: dict[str, float | None]) -> dict[str, float]:
    """Metrics that have a value."""
    return {name: float(value) for name, value in metrics.items() if value is not None}
