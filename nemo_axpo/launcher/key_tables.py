"""NeMo's keys and what each means here: a key of our config, the one value that is true, or nothing.

Sources: NeMo-Aligner 0.7.0 ``gpt_reinforce_actor.yaml`` (``reinforce`` is ``axpo`` here), NeMo-Framework-Launcher
``conf/rlhf_ppo/gpt3/2b_ppo.yaml``, NeMo 1.23 ``megatron_gpt_config.yaml`` and ``exp_manager.py``. Keys of FP8:
``nemo_axpo.config.nemo_precision``.
"""

from __future__ import annotations

from typing import Any

RENAMED: dict[str, tuple[str, ...]] = {
    "trainer.num_nodes": ("job.num_nodes",),
    "trainer.devices": ("job.gpus_per_node",),
    "trainer.axpo.max_steps": ("train.num_steps",),
    "trainer.axpo.val_check_interval": ("train.eval_every",),
    "trainer.axpo.save_interval": ("train.checkpoint_every",),
    "trainer.axpo.gradient_clip_val": ("optimizer.clip_grad",),
    "trainer.axpo.initial_policy_kl_penalty": ("loss.kl_coef",),
    "trainer.axpo.num_rollouts_per_prompt": ("algorithm.num_rollouts",),
    "trainer.axpo.num_continuations": ("algorithm.num_continuations",),
    "trainer.axpo.resample_ratio": ("algorithm.resample_ratio",),
    "trainer.axpo.clip_low": ("loss.clip_low",),
    "trainer.axpo.clip_high": ("loss.clip_high",),
    "trainer.axpo.aggregation": ("loss.aggregation",),
    "trainer.axpo.mismatch": ("loss.mismatch",),
    "trainer.axpo.trt_llm.servers": ("engine.servers",),
    "exp_manager.explicit_log_dir": ("output_dir",),
    "exp_manager.create_tensorboard_logger": ("logging.tensorboard",),
    "exp_manager.create_wandb_logger": ("logging.wandb.enabled",),
    "exp_manager.wandb_logger_kwargs.project": ("logging.wandb.project",),
    "exp_manager.checkpoint_callback_params.save_top_k": ("train.keep_checkpoints",),
    "exp_manager.checkpoint_callback_params.async_save": ("train.checkpoint_async",),
    "pretrained_checkpoint.restore_from_path": ("model.path",),
    "model.seed": ("seed",),
    "model.encoder_seq_length": ("rollout.max_row_tokens", "engine.max_model_len"),
    "model.tensor_model_parallel_size": ("actor.tensor_parallel",),
    "model.pipeline_model_parallel_size": ("actor.pipeline_parallel",),
    "model.virtual_pipeline_model_parallel_size": ("actor.virtual_pipeline",),
    "model.context_parallel_size": ("actor.context_parallel",),
    "model.sequence_parallel": ("actor.sequence_parallel",),
    "model.activations_checkpoint_method": ("actor.recompute_method",),
    "model.activations_checkpoint_num_layers": ("actor.recompute_num_layers",),
    "model.mm_cfg.vision_encoder.freeze": ("actor.freeze_vision",),
    "model.optim.lr": ("optimizer.lr",),
    "model.optim.weight_decay": ("optimizer.weight_decay",),
    "model.optim.betas": ("optimizer.betas",),
    "model.optim.eps": ("optimizer.eps",),
    "model.optim.sched.warmup_steps": ("optimizer.warmup_steps",),
    "model.axpo.num_rollout_samples": ("data.num_questions_per_step",),
    "model.axpo.num_val_samples": ("eval.num_questions",),
    "model.axpo.sampling_params.temperature": ("rollout.temperature",),
    "model.axpo.length_params.max_length": ("rollout.max_new_tokens",),
    "model.data.name": ("data.name",),
}
"""By NeMo's key, the keys of our config that get its value. The keys that NeMo does not have are those of AXPO itself."""

SECTIONS = ("data", "rollout", "tools", "rewards", "engine", "world", "eval", "job", "logging")
"""Sections of our config that stand under ``model.axpo`` as they are: ``model.axpo.rollout.max_turns``."""

COPIES: dict[str, str] = {
    "trainer.gradient_clip_val": "trainer.axpo.gradient_clip_val",
    "trainer.axpo.model_gbs": "model.global_batch_size",
    "trainer.axpo.model_mbs": "model.micro_batch_size",
    "trainer.axpo.trt_llm.seed": "model.seed",
    "model.precision": "trainer.precision",
    "model.axpo.trt_llm.*": "trainer.axpo.trt_llm.*",
    "model.data.seq_length": "model.encoder_seq_length",
}
"""By NeMo's key, the key whose value it must repeat. ``*``: every key of the section."""

FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "defaults": ((None, []), "a stage is read as it is, without Hydra's list of further files"),
    "trainer.max_epochs": ((1, None), "the length of a run is trainer.axpo.max_steps"),
    "trainer.logger": ((False,), "metrics are logged as exp_manager says"),
    "trainer.enable_checkpointing": ((False,), "checkpoints are written as exp_manager says"),
    "trainer.use_distributed_sampler": ((False,), "replicas take the questions of a step in turn"),
    "trainer.axpo.max_epochs": ((1, None), "the length of a run is trainer.axpo.max_steps"),
    "trainer.axpo.use_absolute_kl": ((False,), "the KL term is the estimator k3 (docs/algorithm.md)"),
    "trainer.axpo.rollout_batch_seq_length": ((None,), "rows are packed, not padded to one length"),
    "trainer.axpo.batch_iterator.use_flask": ((False,), "rows are balanced over the replicas before every update"),
    "trainer.axpo.trt_llm.reshard": ((False,), "generation servers have a layout of their own"),
    "trainer.axpo.trt_llm.unload_engine_train": ((False,), "generation servers keep their GPUs"),
    "trainer.axpo.trt_llm.model_type": ((None, "qwen3_vl"), "servers read the architecture from the checkpoint they serve"),
    "exp_manager.exp_dir": ((None,), "the run directory is exp_manager.explicit_log_dir"),
    "exp_manager.resume_from_checkpoint": ((None,), "a run resumes from the newest checkpoint of its own directory"),
    "exp_manager.resume_ignore_no_checkpoint": ((True,), "a run without a checkpoint starts from its beginning"),
    "exp_manager.create_checkpoint_callback": ((True,), "a run always leaves checkpoints"),
    "exp_manager.checkpoint_callback_params.monitor": (("step",), "the newest checkpoints are kept"),
    "exp_manager.checkpoint_callback_params.mode": (("max",), "the newest checkpoints are kept"),
    "exp_manager.checkpoint_callback_params.always_save_nemo": ((False,), "use `nemo-axpo export` for other steps"),
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": ((True,), "the last policy is always exported"),
    "model.mcore_gpt": ((True,), "the model is made of megatron-core's modules"),
    "model.optim.bucket_cap_mb": ((200, None), "megatron-core chooses its buckets"),
    "model.optim.overlap_grad_sync": ((False,), "gradients are reduced after the last micro-batch"),
    "model.axpo.offload_adam_states": ((False,), "generation servers have GPUs of their own"),
    "model.axpo.sampling_params.use_greedy": ((False,), "greedy decoding has no gradient to learn from"),
    "model.axpo.sampling_params.top_k": ((0, -1), "a cut distribution is not the one that is trained"),
    "model.axpo.sampling_params.top_p": ((1.0,), "a cut distribution is not the one that is trained"),
    "model.axpo.sampling_params.repetition_penalty": (
        (1.0,),
        "a penalised distribution is not the one that is trained",
    ),
    "model.axpo.sampling_params.add_BOS": ((False,), "prompts are the chat template's tokens"),
    "model.axpo.sampling_params.all_probs": ((False,), "engines return the log-probs of sampled tokens"),
    "model.axpo.sampling_params.end_strings": ((None, [], ["<|im_end|>"]), "a turn ends at the template's token"),
    "model.axpo.length_params.min_length": ((0, 1), "a turn may be as short as the policy likes"),
    "model.peft.restore_from_path": ((None,), "adapters are not supported"),
    "model.peft.restore_from_ckpt.checkpoint_dir": ((None,), "adapters are not supported"),
    "model.peft.restore_from_ckpt.checkpoint_name": ((None,), "adapters are not supported"),
    "model.data.data_impl": (("jsonl",), "questions are records, a JSON object a line"),
    "model.data.data_prefix": ((None,), "questions come from model.data.recipe or model.axpo.data"),
    "model.data.splits_string": ((None,), "questions for training and validation are streams of their own"),
    "model.data.index_mapping_dir": ((None,), "questions are found by their number, without an index"),
    "model.data.reset_position_ids": ((False,), "a row is one conversation"),
    "model.data.reset_attention_mask": ((False,), "a row is one conversation"),
    "model.data.eod_mask_loss": ((False,), "the loss is on the tokens that the policy sampled"),
}
"""By NeMo's key, the values under which a run here does what the file says, and why."""

REFUSED_SECTIONS: dict[str, str] = {
    "remote_rm.*": "verifiers (model.axpo.rewards) judge a rollout when it ends; there is no reward model server",
}
"""By a section of NeMo's that has no meaning here, why."""

WITHOUT_EFFECT: dict[str, str] = {
    "data_dir": "of the launcher, which writes it into a stage's file on Kubernetes",
    "cluster_type": "of the launcher, which writes it into a stage's file on Kubernetes",
    "launcher_scripts_path": "of the launcher, which writes it into a stage's file on Kubernetes",
    "data_config": "of the launcher, which writes it into a stage's file on Kubernetes",
    "name": "names the job",
    "run.name": "names the job",
    "run.results_dir": "of the launcher; the run directory is exp_manager.explicit_log_dir",
    "run.time_limit": "of the queue; the run's own limit is trainer.max_time",
    "run.dependency": "of the queue",
    "run.nodes": "of the queue",
    "run.ntasks_per_node": "of the queue",
    "trainer.axpo.batch_iterator.port": "of the server that use_flask would start",
    "exp_manager.name": "names the run",
    "exp_manager.wandb_logger_kwargs.name": "names the run",
    "exp_manager.checkpoint_callback_params.filename": "checkpoints are found by their step",
    "exp_manager.checkpoint_callback_params.model_parallel_size": "a checkpoint is read under any layout",
    "model.max_position_embeddings": "positions are rotary: there is no table of them",
    "model.optim.contiguous_grad_buffer": "megatron-core decides it",
    "model.optim.sched.constant_steps": "the rate is constant after its warm-up",
    "model.optim.sched.max_steps": "the rate is constant after its warm-up",
    "model.axpo.rollout_micro_batch_size": "servers batch requests as they come",
    "model.axpo.val_rollout_micro_batch_size": "servers batch requests as they come",
    "model.axpo.forward_micro_batch_size": "log-probs are computed in the micro-batches of the training",
    "model.axpo.sampling_params.compute_logprob": "engines always return them",
    "model.peft.lora_tuning.*": "of adapters, which are not supported",
    "model.overwrite_base_config.*": "a Hugging Face checkpoint has no config of NeMo's to overwrite",
    "model.data.skip_warmup": "of indexed data sets",
    "model.data.num_workers": "questions are made by the rank that samples them",
}
"""By NeMo's key or section, why a run here is the same whatever it says."""

COMPUTED: dict[str, str] = {
    "trainer.accelerator": "device: gpu is cuda",
    "trainer.precision": "actor.dtype and engine.dtype: bf16, bf16-mixed and bf16-true are bfloat16, 32 and 32-true float32",
    "trainer.max_time": "job.max_time",
    "trainer.max_steps": "a copy of trainer.axpo.max_steps, or -1",
    "trainer.axpo.algorithm": "algorithm: axpo, or grpo, which leaves num_continuations and resample_ratio aside",
    "trainer.axpo.trt_llm.enable": "engine.name: true is trtllm, false vllm_server",
    "trainer.axpo.trt_llm.max_input_len": "at least model.encoder_seq_length - max_length; servers have flags of their own",
    "exp_manager.resume_if_exists": "whether a run goes on where it stopped, as --resume says otherwise",
    "exp_manager.max_time_per_run": "job.max_time, where trainer.max_time does not say it",
    "model.megatron_amp_O2": "must be true in bf16: weights have float32 masters",
    "model.micro_batch_size": "actor.micro_batch_tokens: this times model.encoder_seq_length",
    "model.global_batch_size": "actor.num_minibatches: rollouts of a step (num_rollout_samples x num_rollouts_per_prompt) "
    "divided by this",
    "model.activations_checkpoint_granularity": "actor.recompute: null is none",
    "model.optim.name": "actor.distributed_optimizer: true for distributed_fused_adam and mcore_distributed_optim, false for "
    "fused_adam and adamw",
    "model.optim.sched.name": "null or WarmupPolicy; CosineAnnealing where min_lr is lr: the rate is constant after its warm-up",
    "model.optim.sched.min_lr": "must be model.optim.lr under CosineAnnealing",
    "model.peft.peft_scheme": "actor.peft: null or none",
    "model.data.recipe": "a file of conf/data: questions, and who judges their answers",
}
"""Keys whose meaning depends on others (``nemo_keys``), and what each says here."""

FP8_PREFIXES = ("fp8", "transformer_engine", "first_last_layers_bf16", "num_layers_at_", "reduce_amax",
                "ub_tp_comm_overlap", "use_emha", "use_te_rng_tracker")  # fmt: skip
"""Beginnings of the keys of ``model`` that ``fp8_from_nemo`` reads."""
