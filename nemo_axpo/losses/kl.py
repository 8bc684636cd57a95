"""KL divergence of the policy from the reference, estimated on the sampled tokens."""

from __future__ import annotations

from torch import Tensor


def kl_k3(logprobs: Tensor, *, ref_logprobs: Tensor) -> Tensor:
    """Per-token k3 estimate of KL(π‖π_ref): ``exp(d) - d - 1`` with ``d = log π_ref - log π``; any shape.

    Never negative, 0 where the two agree, unbiased for tokens sampled from π. Gradient flows through π alone.
    """
    difference = ref_logprobs.detach() - logprobs
    return difference.exp() - difference - 1.0
