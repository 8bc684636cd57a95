"""Aggregation: constants of the step, Eq. 5 with hand-computed numbers, equality of micro-batch splits."""

from __future__ import annotations

import itertools

import pytest
import torch

from nemo_axpo.data.samples import drop_without_advantage
from nemo_axpo.losses.aggregation import normalizer_of
from nemo_axpo.losses.base import mean_metrics
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.losses.supervised_loss import SupervisedLoss
from nemo_axpo.types import TrainBatch, TrainingSample

AGGREGATIONS = ["token_mean", "sequence_mean"]


def row(rollout_id: str, advantage: float, mask: str) -> TrainingSample:
    """``mask`` as a string of 0 and 1."""
    trained = tuple(bit == "1" for bit in mask)
    zeros = (0.0,) * len(mask)
    return TrainingSample(
        rollout_id, "q", (0,) * len(mask), trained, tuple(advantage if t else 0.0 for t in trained), zeros
    )


def loss_of(samples, *, loss, normalizer: float, logprobs: dict[str, torch.Tensor] | None = None):
    """One micro-batch, padded with poison to its longest row. ``logprobs`` by rollout id; on-policy zeros without."""
    size = max(len(sample.token_ids) for sample in samples)

    def padded(values, fill):
        return torch.stack([torch.nn.functional.pad(v, (0, size - len(v)), value=fill) for v in values])

    given = [(logprobs or {}).get(s.rollout_id, torch.zeros(len(s.token_ids), dtype=torch.float64)) for s in samples]
    return loss(
        logprobs_BS=padded(given, float("nan")),
        old_logprobs_BS=padded([torch.zeros_like(v) for v in given], float("nan")),
        ref_logprobs_BS=padded([torch.full_like(v, -0.3) for v in given], float("nan")),
        advantages_BS=padded([torch.tensor(s.advantages, dtype=torch.float64) for s in samples], 7.0),
        mask_BS=padded([torch.tensor(s.loss_mask) for s in samples], False),
        normalizer=normalizer,
    )


# One question of N = 2, its selected source q/1 with a two-token prefix, and K = 2 continuations.
STEP = TrainBatch(
    samples=(
        row("q/0", -1.0, "0111"),
        row("q/1", 3.0, "011000"),
        row("q/1/k0", 2.0, "00011"),
        row("q/1/k1", -5.0, "0001111"),
    ),
    num_planned_rollouts=2,
)


def test_normalizers_are_constants_of_the_step():
    assert normalizer_of(STEP, aggregation="token_mean") == 3 + 2 + 2 + 4
    assert normalizer_of(STEP, aggregation="sequence_mean") == 2  # not N + K = 4
    with pytest.raises(ValueError, match="got 'mean'"):
        normalizer_of(STEP, aggregation="mean")


def test_equation_5_sums_the_prefix_and_its_continuations_over_b_times_n():
    loss = PolicyLoss(kl_coef=0.0, aggregation="sequence_mean")
    value = loss_of(STEP.samples, loss=loss, normalizer=loss.normalizer_of(STEP)).loss
    assert value.item() == pytest.approx(-(-1.0 + (3.0 + (2.0 - 5.0))) / 2, abs=1e-12)


def test_extra_rows_do_not_dilute_the_ordinary_one():
    loss = PolicyLoss(kl_coef=0.0, aggregation="sequence_mean")
    logprobs = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss_of(STEP.samples, loss=loss, normalizer=loss.normalizer_of(STEP), logprobs={"q/0": logprobs}).loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([0.0, 1 / 6, 1 / 6, 1 / 6], abs=1e-12)  # -A / 3 tokens / (B·N = 2)


def test_token_mean_runs_over_all_unmasked_tokens_of_the_step():
    loss = PolicyLoss(kl_coef=0.0)
    value = loss_of(STEP.samples, loss=loss, normalizer=loss.normalizer_of(STEP)).loss
    assert value.item() == pytest.approx(-(-1.0 * 3 + 3.0 * 2 + 2.0 * 2 - 5.0 * 4) / 11, abs=1e-12)


def test_a_row_without_trained_tokens_contributes_nothing():
    loss = PolicyLoss(kl_coef=0.0, aggregation="sequence_mean")
    assert loss_of([row("q/0", 1.0, "000")], loss=loss, normalizer=2.0).loss.item() == 0.0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kind", [PolicyLoss, SupervisedLoss])
def test_every_split_into_micro_batches_gives_the_same_loss_gradient_and_metrics(kind, aggregation):
    torch.manual_seed(1)
    loss = kind(aggregation=aggregation)
    logprobs = {s.rollout_id: 0.3 * torch.randn(len(s.token_ids), dtype=torch.float64) for s in STEP.samples}

    def totals(micro_batches):
        leaves = {name: value.clone().requires_grad_() for name, value in logprobs.items()}
        outputs = [
            loss_of(rows, loss=loss, normalizer=loss.normalizer_of(STEP), logprobs=leaves) for rows in micro_batches
        ]
        sum(output.loss for output in outputs).backward()
        sums = {name: sum(o.metrics[name] for o in outputs).item() for name in outputs[0].metrics}
        gradients = torch.cat([leaves[name].grad for name in sorted(leaves)])
        return sum(output.loss for output in outputs).item(), gradients, mean_metrics(sums)

    whole_loss, whole_gradients, whole_metrics = totals([STEP.samples])
    for order in itertools.permutations(STEP.samples):
        for cut in (1, 2, 3):
            value, gradients, metrics = totals([order[:cut], order[cut:]])
            assert value == pytest.approx(whole_loss, abs=1e-12)
            assert torch.allclose(gradients, whole_gradients, rtol=0, atol=1e-12)
            assert metrics == pytest.approx(whole_metrics, abs=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_dropping_rows_without_advantage_changes_neither_loss_nor_denominator(aggregation):
    loss = PolicyLoss(kl_coef=0.0, aggregation=aggregation)
    full = TrainBatch((*STEP.samples, row("q/2", 0.0, "01111"), row("q/1/k2", 0.0, "00001")), num_planned_rollouts=3)
    dropped = drop_without_advantage(full)
    assert [s.rollout_id for s in dropped.samples] == [s.rollout_id for s in STEP.samples]
    assert dropped.num_loss_tokens == full.num_loss_tokens == 16
    assert loss.normalizer_of(dropped) == loss.normalizer_of(full)
    values = [loss_of(b.samples, loss=loss, normalizer=loss.normalizer_of(b)).loss.item() for b in (full, dropped)]
    assert values[0] == pytest.approx(values[1], abs=1e-15)
    assert drop_without_advantage(dropped) == dropped
