"""The section ``trainer.axpo`` that follows from a config of ours: what ``nemo-axpo train loop=aligner`` gives the trainer."""

from __future__ import annotations

import math
from typing import Any

from nemo_axpo.config.schema import Config
from nemo_axpo.errors import ConfigError, rule_message


def trainer_section(config: Config, *, num_replicas: int) -> dict[str, Any]:
    """Keys that ``ReinforceTrainer`` reads, and the sizes of its data loaders.

    ConfigError where NeMo-Aligner cannot cut the run as the config says.
    """
    train, num_questions = config.train, config.data.num_questions_per_step
    num_rows = num_questions * config.algorithm.num_rollouts // config.actor.num_minibatches
    return {
        "max_epochs": 1,
        "max_steps": train.num_steps,
        **_intervals(config),
        "gradient_clip_val": config.optimizer.clip_grad,
        "initial_policy_kl_penalty": config.loss.kl_coef,
        "num_rollouts_per_prompt": config.algorithm.num_rollouts,
        "rollout_batch_seq_length": None,
        "trt_llm": {"enable": config.engine.name == "trtllm", "reshard": False},
        "batch_iterator": {"use_flask": False},
        "model_gbs": max(1, num_rows // num_replicas) * num_replicas,
        "rollout_micro_batch_size": share("data.num_questions_per_step", num_questions, num_replicas=num_replicas),
        "val_rollout_micro_batch_size": share(
            "eval.num_questions", config.eval.num_questions, num_replicas=num_replicas
        ),
    }


def share(key: str, number: int, *, num_replicas: int) -> int:
    """A replica's part of ``number``; ConfigError where parts are unequal: NeMo-Aligner's loaders deal equal ones."""
    if number % num_replicas:
        rule = f"{key} must be a multiple of the {num_replicas} replicas: NeMo-Aligner deals them equal parts"
        cure = f"set it to {math.ceil(number / num_replicas) * num_replicas}, or choose loop=native"
        raise ConfigError(rule_message(rule, got=number, cure=cure))
    return number // num_replicas


def _intervals(config: Config) -> dict[str, int]:
    """``eval_every``, at which ``run_validation`` samples, and the intervals of ``fit``, which also saves at the end.

    NeMo-Aligner wants a multiple of ``val_check_interval`` to save at, hence the greatest common divisor.
    """
    train = config.train
    save_interval = train.checkpoint_every or train.num_steps
    val_check_interval = math.gcd(save_interval, train.eval_every) if train.eval_every else 0
    return {
        "eval_every": train.eval_every,
        "val_check_interval": val_check_interval,
        "save_interval": save_interval,
    }
