"""Weights for tokens to which engine and trainer give different probabilities, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_axpo.losses.mismatch import MASKING, NONE, TIS, SequenceMasking, TruncatedImportanceSampling, build_correction
from nemo_axpo.losses.policy_loss import PolicyLoss

MASK = torch.tensor([[False, True, True, True], [False, True, True, False]])
OLD = torch.tensor([[9.9, math.log(0.5), math.log(0.9), math.log(0.1)], [9.9, math.log(0.4), math.log(0.4), math.nan]])
ENGINE = torch.tensor([[0.0, math.log(0.25), math.log(0.9), math.log(0.02)], [0.0, math.log(0.5), math.log(0.32), 0.0]])
"""Ratios trainer ÷ engine: 2, 1, 5 and 0.8, 1.25 (whose logarithms cancel)."""


def call(loss, *, old=OLD, engine=ENGINE, requires_grad=False):
    logprobs = old.clone().requires_grad_(requires_grad)
    output = loss(
        logprobs_BS=logprobs,
        old_logprobs_BS=None,
        ref_logprobs_BS=torch.zeros_like(old),
        advantages_BS=torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, -2.0, -2.0, 0.0]]),
        mask_BS=MASK,
        normalizer=1.0,
        engine_logprobs_BS=engine,
    )
    return output, logprobs


def test_truncated_importance_weights():
    weights = TruncatedImportanceSampling(cap=3.0)(old_BS=OLD, engine_BS=ENGINE, mask_BS=MASK)
    expected = torch.tensor([[1.0, 2.0, 1.0, 3.0], [1.0, 0.8, 1.25, 1.0]])
    torch.testing.assert_close(weights, expected)


def test_rows_beyond_the_limit_are_left_out():
    weights = SequenceMasking(limit=0.01)(old_BS=OLD, engine_BS=ENGINE, mask_BS=MASK)
    assert weights.tolist() == [[0.0] * 4, [1.0] * 4]  # row 0: log(2·1·5) / 3 = 0.77; row 1: log(0.8·1.25) = 0
    wide = SequenceMasking(limit=math.log(10) / 3 + 1e-6)(old_BS=OLD, engine_BS=ENGINE, mask_BS=MASK)
    assert wide.tolist() == [[1.0] * 4, [1.0] * 4]


def test_a_row_without_trained_tokens_is_kept():
    weights = SequenceMasking()(old_BS=OLD, engine_BS=ENGINE, mask_BS=torch.zeros_like(MASK))
    assert weights.tolist() == [[1.0] * 4, [1.0] * 4]


def test_the_surrogate_is_weighted_and_the_kl_term_is_not():
    plain, _ = call(PolicyLoss(kl_coef=0.5))
    weighted, _ = call(PolicyLoss(kl_coef=0.5, mismatch=TIS, importance_cap=3.0))
    # on-policy: the surrogate is the advantage; weights 2, 1, 3 and 0.8, 1.25
    assert plain.metrics["policy_loss"].item() == pytest.approx(-(3 - 4))
    assert weighted.metrics["policy_loss"].item() == pytest.approx(-(6 - 2 * 2.05))
    assert weighted.metrics["kl"].item() == plain.metrics["kl"].item()
    difference = (weighted.loss - plain.loss).item()
    assert difference == pytest.approx(-(6 - 4.1) + (3 - 4), rel=1e-5)
    assert weighted.metrics["mismatch_weight"].item() == pytest.approx(8.05)


def test_weights_have_no_gradient():
    output, logprobs = call(PolicyLoss(kl_coef=0.0, mismatch=TIS, importance_cap=3.0), requires_grad=True)
    output.loss.backward()
    expected = torch.tensor([[0.0, -2.0, -1.0, -3.0], [0.0, 1.6, 2.5, 0.0]])
    torch.testing.assert_close(logprobs.grad, expected)


def test_a_masked_row_has_no_gradient_and_counts():
    output, logprobs = call(PolicyLoss(kl_coef=0.0, mismatch=MASKING), requires_grad=True)
    output.loss.backward()
    assert not logprobs.grad[0].any() and logprobs.grad[1].any()
    assert output.metrics["num_loss_tokens"].item() == 5 and output.metrics["mismatch_weight"].item() == 2


def test_without_a_correction_the_engine_is_not_read():
    loss = PolicyLoss()
    assert loss.mismatch == NONE and "mismatch_weight" not in loss.metric_names
    output, _ = call(loss, engine=None)
    assert set(output.metrics) == set(loss.metric_names)
    assert set(call(PolicyLoss(mismatch=TIS))[0].metrics) == set(PolicyLoss(mismatch=TIS).metric_names)


def test_equal_log_probs_change_nothing():
    for name in (NONE, TIS, MASKING):
        weights = build_correction(name, importance_cap=2.0, row_limit=0.01)(old_BS=OLD, engine_BS=OLD, mask_BS=MASK)
        assert weights.tolist() == [[1.0] * 4] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mismatch": "clip"}, "must be one of: none, truncated_importance_sampling, sequence_masking"),
        ({"mismatch": TIS, "importance_cap": 0.5}, "at least 1; got 0.5"),
        ({"mismatch": MASKING, "row_limit": 0.0}, "positive; got 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicyLoss(**settings)
