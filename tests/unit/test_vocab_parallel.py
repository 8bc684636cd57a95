"""Log-probs from logits against a full log-softmax: values, gradient, temperature, banned ids, entropy."""

from __future__ import annotations

import pytest
import torch

from nemo_axpo.models.vocab_parallel import VocabShard, token_logprobs


def test_hand_computed():
    # two tokens left of four, equally likely after the ban: log-prob -ln 2, entropy ln 2
    logits = torch.tensor([[3.0, 3.0, 9.0, -4.0]])
    shard = VocabShard.of(4, banned_ids=[2, 3])
    logprobs, entropy = token_logprobs(
        logits, targets_L=torch.tensor([1]), inverse_temperature_L=torch.ones(1), shard=shard
    )
    assert logprobs.tolist() == pytest.approx([-0.693147], abs=1e-6)
    assert entropy.tolist() == pytest.approx([0.693147], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_log_softmax(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(20, 50, generator=generator)).to(dtype).requires_grad_()
    targets, temperature = torch.arange(20), torch.linspace(0.5, 2.0, 20)
    banned = [41, 49]
    ours, entropy = token_logprobs(
        logits, targets_L=targets, inverse_temperature_L=1 / temperature, shard=VocabShard.of(50, banned_ids=banned)
    )
    weights = torch.randn(20, generator=generator)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), logits)

    scaled = (logits.float() / temperature[:, None]).index_fill(1, torch.tensor(banned), float("-inf"))
    log_probs = scaled.log_softmax(-1)
    theirs = log_probs.gather(1, targets[:, None]).squeeze(1)
    (their_gradient,) = torch.autograd.grad((theirs * weights).sum(), logits, retain_graph=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-6, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5)
    probs = log_probs.exp()
    torch.testing.assert_close(entropy, -(probs * log_probs.nan_to_num(neginf=0.0)).sum(-1), atol=1e-5, rtol=1e-5)
    assert (gradient[:, banned] == 0).all()


def test_shards_cover_the_vocabulary():
    shards = [VocabShard.of(8, banned_ids=[3, 6], rank=rank, size=2) for rank in range(2)]
    assert [shard.first_id for shard in shards] == [0, 4]
    assert [(shard.bias_V < 0).nonzero().flatten().tolist() for shard in shards] == [[3], [2]]
