"""Noise and sampling of the embedded engine, on distributions small enough to compute by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_axpo.engines.hf.sampling import SamplingControls, keep_top, sample, uniform_noise
from nemo_axpo.types import SamplingParams

LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


def controls(**sampling: float) -> SamplingControls:
    return SamplingControls.of([SamplingParams(1, **sampling)], vocab_size=4, device=torch.device("cpu"))


def draw(uniform: float, logits: torch.Tensor = LOGITS, **sampling: float) -> tuple[int, float]:
    tokens, logprobs = sample(logits, controls=controls(**sampling), uniforms_R1=torch.tensor([[uniform]]))
    return tokens.item(), logprobs.exp().item()


def test_noise_is_a_function_of_seed_and_token_number():
    assert uniform_noise(7, num_tokens=3) == uniform_noise(7, num_tokens=10)[:3]
    assert uniform_noise(7, num_tokens=3) != uniform_noise(8, num_tokens=3)
    noise = uniform_noise(2**64 - 1, num_tokens=4000)
    assert all(0 < value <= 1 for value in noise)
    assert sum(noise) / 4000 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("uniform,token", [(1e-9, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (0.88, 3), (1.0, 3)])
def test_inverse_cdf(uniform, token):
    assert draw(uniform) == (token, pytest.approx([0.5, 0.25, 0.125, 0.125][token]))


@pytest.mark.parametrize("uniform", [1e-30, 0.3, 1.0])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, -math.inf]])
    assert draw(uniform, logits) == (1, pytest.approx(1.0))


def test_temperature():
    # p² renormalised: 16 : 4 : 1 : 1
    assert draw(0.5, temperature=0.5) == (0, pytest.approx(16 / 22))
    assert draw(0.74, temperature=0.5) == (1, pytest.approx(4 / 22))


def test_greedy_keeps_the_whole_distribution():
    assert draw(1.0, temperature=0.0, top_k=1, top_p=0.1) == (0, pytest.approx(0.5))


def test_top_k_and_top_p():
    assert draw(1.0, top_k=2) == (1, pytest.approx(1 / 3))
    assert draw(1.0, top_p=0.6) == (1, pytest.approx(1 / 3))
    assert draw(1.0, top_p=0.8) == (2, pytest.approx(1 / 7))
    assert draw(1.0, top_p=0.5) == (0, pytest.approx(1.0))
    assert draw(1.0, top_k=3, top_p=0.7) == (1, pytest.approx(1 / 3))  # top-k renormalises before top-p


def test_each_row_has_its_own_filters():
    logits = LOGITS.expand(3, 4).flip(-1)
    kept = keep_top(
        logits, top_k_R1=torch.tensor([[4], [1], [4]]), top_p_R1=torch.tensor([[math.inf], [math.inf], [0.7]])
    )
    assert kept.isfinite().tolist() == [[True] * 4, [False, False, False, True], [False, False, True, True]]


def test_presence_penalty_comes_before_the_temperature():
    seen = torch.tensor([[True, False, False, True]])
    penalised = controls(temperature=0.5, presence_penalty=math.log(2))
    tokens, logprobs = sample(LOGITS, controls=penalised, uniforms_R1=torch.tensor([[1e-9]]), seen_RV=seen)
    # p = 1/4 : 1/4 : 1/8 : 1/16, then squared: 16 : 16 : 4 : 1
    assert (tokens.item(), logprobs.exp().item()) == (0, pytest.approx(16 / 37))


def test_plain_requests_need_no_controls():
    assert controls() == SamplingControls()
