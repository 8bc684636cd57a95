"""From logits to sampled tokens: presence penalty, temperature, top-k, top-p, inverse-CDF sampling with own noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_axpo.types import SamplingParams


def uniform_noise(seed: int, *, num_tokens: int) -> list[float]:
    """Uniforms in (0, 1] for tokens 0, 1, …: counter-based (Philox keyed by ``seed``), hence free of the neighbours."""
    return (1.0 - np.random.Generator(np.random.Philox(key=seed)).random(num_tokens)).tolist()


@dataclass(frozen=True)
class SamplingControls:
    """The sampling parameters of the R running requests; None where no request departs from the plain distribution."""

    temperature_R1: Tensor | None = None
    is_greedy_R: Tensor | None = None
    top_k_R1: Tensor | None = None
    """int64; the vocabulary size where a request keeps everything."""
    top_p_R1: Tensor | None = None
    presence_penalty_R1: Tensor | None = None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], *, vocab_size: int, device: torch.device) -> SamplingControls:
        """Gathers ``params``; a greedy request (temperature 0) keeps temperature 1 and the whole distribution."""
        penalties = _penalties(params, device=device)
        if all(p.temperature == 1.0 and p.top_p == 1.0 and p.top_k == 0 for p in params):
            return cls(presence_penalty_R1=penalties)
        greedy = [p.temperature == 0 for p in params]
        temperatures = [p.temperature or 1.0 for p in params]
        ranks = [p.top_k if p.top_k and p.temperature else vocab_size for p in params]
        masses = [p.top_p if p.top_p < 1.0 and p.temperature else float("inf") for p in params]
        filtered = min(ranks) < vocab_size or min(masses) < 1.0
        return cls(
            temperature_R1=torch.tensor(temperatures, device=device).unsqueeze(1),
            is_greedy_R=torch.tensor(greedy, device=device) if any(greedy) else None,
            top_k_R1=torch.tensor(ranks, device=device).unsqueeze(1) if filtered else None,
            top_p_R1=torch.tensor(masses, device=device).unsqueeze(1) if filtered else None,
            presence_penalty_R1=penalties,
        )


def _penalties(params: Sequence[SamplingParams], *, device: torch.device) -> Tensor | None:
    penalties = [p.presence_penalty for p in params]
    return torch.tensor(penalties, device=device).unsqueeze(1) if any(penalties) else None


def sample(
    logits_RV: Tensor, *, controls: SamplingControls, uniforms_R1: Tensor, seen_RV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sampled ids int64 ``[R]`` and their natural-log probabilities float32 ``[R]``.

    ``seen_RV``: bool, tokens that a completion already holds; needed where ``controls`` penalise them. Banned ids arrive as logits of -inf. The token is the first whose cumulative probability reaches u · total; with
    u in (0, 1] this never lands on a token of probability zero (but for a parallel, non-monotone scan: see below).
    """
    logits_RV = logits_RV.float()
    if controls.presence_penalty_R1 is not None:
        logits_RV = logits_RV - controls.presence_penalty_R1 * seen_RV
    if controls.temperature_R1 is not None:
        logits_RV = logits_RV / controls.temperature_R1
    if controls.top_k_R1 is not None:
        logits_RV = keep_top(logits_RV, top_k_R1=controls.top_k_R1, top_p_R1=controls.top_p_R1)
    probs_RV = logits_RV.softmax(-1)
    cumulative_RV = probs_RV.cumsum(-1)
    tokens_R1 = torch.searchsorted(cumulative_RV, uniforms_R1 * cumulative_RV[:, -1:])
    tokens_R1.clamp_(max=probs_RV.shape[1] - 1)  # past the end only where logits are NaN: the caller sees its log-prob
    if controls.is_greedy_R is not None or logits_RV.is_cuda:
        tokens_R1 = _prefer_argmax(tokens_R1, probs_RV=probs_RV, is_greedy_R=controls.is_greedy_R)
    return tokens_R1.squeeze(1), probs_RV.gather(1, tokens_R1).log_().squeeze(1)


def keep_top(logits_RV: Tensor, *, top_k_R1: Tensor, top_p_R1: Tensor) -> Tensor:
    """Sets to -inf what top-k, then top-p drops: the kept set is the smallest that holds ``top_p`` of the mass."""
    sorted_RV, order_RV = logits_RV.sort(-1, descending=True)
    ranks_V = torch.arange(logits_RV.shape[1], device=logits_RV.device)
    sorted_RV = sorted_RV.masked_fill(ranks_V >= top_k_R1, float("-inf"))
    probs_RV = sorted_RV.softmax(-1)
    mass_before_RV = probs_RV.cumsum(-1) - probs_RV
    sorted_RV = sorted_RV.masked_fill(mass_before_RV >= top_p_R1, float("-inf"))
    return torch.empty_like(logits_RV).scatter_(1, order_RV, sorted_RV)


def _prefer_argmax(tokens_R1: Tensor, *, probs_RV: Tensor, is_greedy_R: Tensor | None) -> Tensor:
    """The most likely token where a request is greedy, or where rounding chose a token of probability zero.

    A GPU's parallel scan is not exactly monotone, so its search may land beside the token it looked for.
    """
    replace_R1 = probs_RV.gather(1, tokens_R1) == 0
    if is_greedy_R is not None:
        replace_R1 = replace_R1 | is_greedy_R.unsqueeze(1)
    return torch.where(replace_R1, probs_RV.argmax(-1, keepdim=True), tokens_R1)
