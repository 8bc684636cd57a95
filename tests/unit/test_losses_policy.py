"""Policy, KL and supervised losses against numbers computed by hand, and their gradients against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_axpo.losses.base import LossOutput, mean_metrics
from nemo_axpo.losses.kl import kl_k3
from nemo_axpo.losses.policy_loss import PolicyLoss
from nemo_axpo.losses.supervised_loss import SupervisedLoss


def call(loss: PolicyLoss, logprobs, advantages, *, old=None, ref=None, mask=None, normalizer=1.0) -> LossOutput:
    """Calls with rows given as nested lists or tensors; everything float64."""

    def rows(values):
        return values if values is None or torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)

    logprobs_BS = rows(logprobs)
    mask_BS = torch.ones_like(logprobs_BS, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return loss(
        logprobs_BS=logprobs_BS,
        old_logprobs_BS=rows(old),
        ref_logprobs_BS=rows(ref),
        advantages_BS=rows(advantages),
        mask_BS=mask_BS,
        normalizer=normalizer,
    )


def logs(*probabilities: float) -> list[list[float]]:
    return [[math.log(p) for p in probabilities]]


# ------------------------------------------------------------------------------------------------- clipped surrogate
@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "is_clipped"),
    [
        (1.5, 2.0, 2.8, True),  # clipped at 1.4
        (1.3, 2.0, 2.6, False),  # inside the wide upper side; a symmetric 0.2 would clip it
        (1.5, -1.0, -1.5, False),  # the pessimistic side is never clipped
        (0.5, -1.0, -0.8, True),  # clipped at 0.8
        (0.5, 2.0, 1.0, False),
        (0.7, -2.0, -1.6, True),  # a clip at 1 - 0.4 would leave it at -1.4
    ],
)
def test_clipped_surrogate_of_one_token(ratio, advantage, surrogate, is_clipped):
    output = call(PolicyLoss(kl_coef=0.0), logs(ratio / 4), [[advantage]], old=logs(1 / 4))
    assert output.loss.item() == pytest.approx(-surrogate, abs=1e-12)
    assert output.metrics["policy_loss"].item() == pytest.approx(-surrogate, abs=1e-12)
    assert output.metrics["clip_fraction"].item() == float(is_clipped)
    assert output.metrics["ratio_mean"].item() == pytest.approx(ratio, abs=1e-12)


def test_token_mean_of_four_tokens():
    loss = PolicyLoss(kl_coef=0.0)
    ratios, advantages = logs(1.5, 0.5, 0.5, 1.5), [[2.0, -1.0, 1.0, -1.0]]
    output = call(loss, ratios, advantages, old=[[0.0] * 4], normalizer=4.0)
    assert output.loss.item() == pytest.approx(-(2.8 - 0.8 + 0.5 - 1.5) / 4, abs=1e-12)
    means = mean_metrics(output.metrics)
    assert means == {
        "policy_loss": pytest.approx(-0.25, abs=1e-12),
        "kl": 0.0,
        "clip_fraction": 0.5,
        "ratio_mean": pytest.approx(1.0, abs=1e-12),
        "num_loss_tokens": 4.0,
    }


def test_gradient_of_a_clipped_token_is_zero_and_of_a_free_one_minus_ratio_times_advantage():
    logprobs = torch.tensor([[math.log(1.5), math.log(1.3), math.log(0.5), math.log(0.9)]], dtype=torch.float64)
    logprobs.requires_grad_()
    call(PolicyLoss(kl_coef=0.0), logprobs, [[2.0, 2.0, -1.0, -1.0]], old=[[0.0] * 4], normalizer=2.0).loss.backward()
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, -1.3, 0.0, 0.45], abs=1e-12)


def test_without_old_logprobs_the_policy_is_on_policy():
    logprobs = torch.tensor(logs(0.3, 0.9), dtype=torch.float64, requires_grad=True)
    output = call(PolicyLoss(kl_coef=0.0), logprobs, [[2.0, -1.0]], normalizer=2.0)
    output.loss.backward()
    assert output.loss.item() == -0.5
    assert logprobs.grad.tolist() == [[-1.0, 0.5]]
    assert (output.metrics["ratio_mean"].item(), output.metrics["clip_fraction"].item()) == (2.0, 0.0)


def test_no_gradient_reaches_old_and_reference_logprobs():
    logprobs, old, ref = (torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True) for _ in range(3))
    call(PolicyLoss(), logprobs, [[1.0, -1.0]], old=old, ref=ref).loss.backward()
    assert old.grad is None and ref.grad is None and logprobs.grad is not None


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_gradients_agree_with_finite_differences(aggregation):
    torch.manual_seed(0)
    loss = PolicyLoss(kl_coef=0.3, aggregation=aggregation)
    logprobs, old, ref, advantages = (torch.randn(3, 5, dtype=torch.float64) * 0.3 for _ in range(4))
    mask = (torch.rand(3, 5) > 0.3).tolist()

    def of(logprobs_BS):
        return call(loss, logprobs_BS, advantages, old=old, ref=ref, mask=mask, normalizer=7.0).loss

    assert torch.autograd.gradcheck(of, logprobs.requires_grad_())


# --------------------------------------------------------------------------------------------------------------- KL
def test_k3_of_one_token_and_its_gradient():
    logprobs = torch.tensor(0.5, dtype=torch.float64).log().requires_grad_()
    kl = kl_k3(logprobs, ref_logprobs=torch.tensor(0.25, dtype=torch.float64).log())
    kl.backward()
    assert kl.item() == pytest.approx(0.5 + math.log(2) - 1, abs=1e-15)
    assert logprobs.grad.item() == pytest.approx(1 - 0.5, abs=1e-15)


def test_k3_is_unbiased_for_the_kl_divergence():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    estimates = kl_k3(policy.log(), ref_logprobs=reference.log())
    exact = (policy * (policy / reference).log()).sum()
    assert (policy * estimates).sum().item() == pytest.approx(exact.item(), abs=1e-6)
    assert (estimates >= 0).all()


def test_kl_is_added_on_the_trained_tokens_only():
    mask = [[False, True, True]]
    output = call(PolicyLoss(kl_coef=0.1), logs(0.5, 0.5, 0.5), [[9.0, 1.0, 1.0]], ref=logs(0.1, 0.25, 0.5), mask=mask)
    kl = 0.5 + math.log(2) - 1
    assert output.metrics["kl"].item() == pytest.approx(kl, abs=1e-12)
    assert output.loss.item() == pytest.approx(-2.0 + 0.1 * kl, abs=1e-12)


def test_reference_is_needed_exactly_when_kl_is_on():
    assert PolicyLoss().needs_reference and not PolicyLoss(kl_coef=0.0).needs_reference
    with pytest.raises(AssertionError, match="reference policy"):
        call(PolicyLoss(), logs(0.5), [[1.0]])


# -------------------------------------------------------------------------------------------------- masks and errors
def test_masked_positions_are_never_read():
    mask = [[True, False, False, False]]
    bad = [-1.0, math.nan, math.inf, -math.inf]
    logprobs = torch.tensor([bad], dtype=torch.float64, requires_grad=True)
    output = call(PolicyLoss(), logprobs, [[1.0, *bad[1:]]], old=[bad[:1] + bad[:0:-1]], ref=[bad], mask=mask)
    output.loss.backward()
    assert output.loss.item() == -1.0
    assert logprobs.grad.tolist() == [[-1.0, 0.0, 0.0, 0.0]]
    assert output.metrics["num_loss_tokens"].item() == 1.0
    supervised = SupervisedLoss()(logprobs_BS=logprobs, mask_BS=torch.tensor(mask), normalizer=1.0)
    assert supervised.loss.item() == 1.0


def test_paper_settings_are_the_defaults():
    loss = PolicyLoss()
    assert (loss.clip_low, loss.clip_high, loss.kl_coef, loss.aggregation) == (0.2, 0.4, 1e-3, "token_mean")
    assert loss.needs_old


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 1.2}, "clip_low must lie in .* got 1.2"),
        ({"clip_high": -0.1}, "clip_high must not be negative; got -0.1"),
        ({"kl_coef": math.nan}, "kl_coef must not be negative; got nan"),
        ({"aggregation": "row_mean"}, "must be one of: sequence_mean, token_mean; got 'row_mean'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicyLoss(**settings)


def test_a_step_without_tokens_is_refused():
    with pytest.raises(AssertionError, match="positive count"):
        call(PolicyLoss(kl_coef=0.0), logs(0.5), [[1.0]], normalizer=0.0)
    with pytest.raises(AssertionError, match="no unmasked token"):
        mean_metrics({"kl": 0.0, "num_loss_tokens": 0.0})


# --------------------------------------------------------------------------------------------------------- supervised
def test_supervised_loss_is_the_mean_negative_log_likelihood():
    logprobs = torch.tensor(logs(0.5, 0.25, 0.125), dtype=torch.float64, requires_grad=True)
    output = SupervisedLoss()(logprobs_BS=logprobs, mask_BS=torch.tensor([[False, True, True]]), normalizer=2.0)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(2.5 * math.log(2), abs=1e-12)
    assert logprobs.grad.tolist() == [[0.0, -0.5, -0.5]]
    assert mean_metrics(output.metrics)["nll"] == pytest.approx(2.5 * math.log(2), abs=1e-12)
    assert not SupervisedLoss().needs_old and not SupervisedLoss().needs_reference
