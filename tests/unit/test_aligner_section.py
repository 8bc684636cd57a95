"""trainer.axpo from a config of ours; the learning rate, the log and the checkpoints under NeMo-Aligner."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from nemo_axpo.aligner.checkpoints import CheckpointCallback, trainer_state
from nemo_axpo.aligner.launcher_stage import register_stage
from nemo_axpo.aligner.optimizer import PolicyOptimizer, WarmupScheduler
from nemo_axpo.aligner.run_log import RunLog
from nemo_axpo.aligner.stop_timer import StopTimer
from nemo_axpo.aligner.trainer_section import trainer_section
from nemo_axpo.config.load import load_config
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.errors import ConfigError
from nemo_axpo.metrics_log import MetricsLog
from nemo_axpo.stopping import StopRequest


def section(*overrides: str, num_replicas: int = 2):
    sizes = ("data.num_questions_per_step=8", "algorithm.num_rollouts=4", "eval.num_questions=6")
    return trainer_section(load_config([*sizes, *overrides]), num_replicas=num_replicas)


def test_sizes_by_hand():
    values = section("actor.num_minibatches=2", "train.eval_every=5", "train.checkpoint_every=10")
    assert values["model_gbs"] == 8 * 4 // 2
    assert values["rollout_micro_batch_size"] == 4 and values["val_rollout_micro_batch_size"] == 3
    assert (values["val_check_interval"], values["save_interval"]) == (5, 10)


@pytest.mark.parametrize(
    ("overrides", "intervals"),
    [
        (("train.eval_every=0", "train.checkpoint_every=7"), (0, 0, 7)),
        (("train.eval_every=0", "train.checkpoint_every=0", "train.num_steps=9"), (0, 0, 9)),
        (("train.eval_every=4", "train.checkpoint_every=0", "train.num_steps=9"), (4, 1, 9)),
        (("train.eval_every=4", "train.checkpoint_every=6"), (4, 2, 6)),
        (("train.eval_every=10", "train.checkpoint_every=1"), (10, 1, 1)),
    ],
)
def test_fit_saves_when_the_config_says_and_nemo_aligner_finds_it_a_multiple(overrides, intervals):
    values = section(*overrides)
    assert (values["eval_every"], values["val_check_interval"], values["save_interval"]) == intervals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.num_questions_per_step=9",), "data.num_questions_per_step must be a multiple of the 2 replicas"),
        (("eval.num_questions=7",), "got 7: set it to 8"),
    ],
)
def test_what_nemo_aligner_cannot_cut_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        section(*overrides)


class Actor:
    def __init__(self):
        self.rates = []

    def take_step(self, *, lr):
        self.rates.append(lr)
        return 2.5


def test_steps_are_taken_at_the_scheduled_rate_and_skipped_without_a_gradient():
    model = SimpleNamespace(actor=Actor(), has_gradient=True)
    optimizer = PolicyOptimizer(model)
    scheduler = WarmupScheduler(optimizer, rate=lambda done: 0.1 * (done + 1))
    optimizer.step()
    scheduler.step()
    assert optimizer.grad_norm == 2.5
    model.has_gradient = False
    optimizer.step()
    scheduler.step()
    assert optimizer.grad_norm == 0.0
    scheduler.move_to(9)
    model.has_gradient = True
    optimizer.step()
    assert model.actor.rates == pytest.approx([0.1, 1.0])


def test_the_pieces_of_a_step_become_one_row(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    run_log = RunLog(log)
    for step in range(2):
        run_log.log_metrics({"train_rollouts/rollout/accuracy": 0.5, "train_rollouts/rewards": 0.5}, step)
        for number in range(2):
            run_log.log_metrics({"train_optim/update/loss": float(number), "train_optim/lr": 0.1}, step)
            run_log.log_metrics({"train_optim/update/grad_norm": 3.0}, step)
        run_log.log_metrics({"timers/train_time": 1.5, "timers/rollout_time": 2.0, "timers/resample": 0.5}, step)
        run_log.log_metrics({}, step + 1)  # a validation that was not due
        run_log.log_metrics({"val_rollouts/pass@1": 0.25, "val_rollouts/rewards": 0.25}, step + 1)
    run_log.finalize("success")
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = {
        "rollout/accuracy": 0.5, "eval/pass@1": 0.25,
        "time/update_s": 1.5, "time/rollout_s": 2.0, "time/resample_s": 0.5, "time/step_s": 3.5,
        "update/loss": 0.5, "update/lr": 0.1, "update/grad_norm": 3.0,
    }  # fmt: skip
    assert rows == [{"step": 1} | expected, {"step": 2} | expected]


def test_the_log_is_written_before_a_checkpoint_and_the_last_one_is_waited_for():
    calls = []
    store = SimpleNamespace(
        save=lambda step: calls.append(f"save {step}"), finish=lambda wait=True: calls.append(f"finish {wait}")
    )
    callback = CheckpointCallback(store, before=lambda: calls.append("log"))
    callback.between_steps()
    callback.custom_save(monitor_candidates={"step": 3, "val_rewards": 0.5}, is_train_end=False)
    callback.custom_save(monitor_candidates={"step": 4}, is_train_end=True)
    assert calls == ["log", "finish False", "log", "save 3", "log", "save 4", "finish True"]


def test_counts_of_a_resumed_trainer_by_hand():
    config = load_config(["data.num_questions_per_step=8", "actor.num_minibatches=2"])
    assert trainer_state(config, step=4) == {
        "step": 4, "consumed_samples": 32, "epoch": 0, "reinforce_optimization_step": 8,
    }  # fmt: skip


def test_the_run_timer_stops_after_a_step_on_every_rank():
    request = StopRequest()
    timer = StopTimer(request, replicas=OneProcess())
    timer.start_time()
    assert not timer.is_finished() and timer.reason is None
    request.is_signalled = True
    assert timer.is_finished() and timer.reason == "signal SIGUSR1" and "SIGUSR1" in repr(timer)


def test_the_launcher_stage_without_the_launcher_names_the_cure():
    with pytest.raises(ImportError, match="put NeMo-Framework-Launcher/launcher_scripts on PYTHONPATH"):
        register_stage({})
