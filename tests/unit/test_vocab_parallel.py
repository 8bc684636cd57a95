"""Log-probs from logits against a full log-softmax: values, gradient, temperature, banned ids, entropy."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_axpo.models.vocab_parallel import OutputStates, VocabShard, output_logprobs, token_logprobs


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


def chunked(hidden, weight, *, chunk_tokens, upstream):
    """Log-probs, entropies and the gradients of hidden states and projection."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    shard = VocabShard.of(len(weight), banned_ids=[3, 5], chunk_tokens=chunk_tokens)
    size = len(hidden)
    logprobs, entropy = output_logprobs(
        OutputStates(hidden, weight),
        targets_L=6 + torch.arange(size) % (len(weight) - 6),
        inverse_temperature_L=torch.linspace(0.5, 2.0, size),
        shard=shard,
    )
    assert not entropy.requires_grad
    return logprobs, entropy, *torch.autograd.grad((logprobs * upstream).sum(), (hidden, weight))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 10, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_give_the_numbers_of_the_whole(chunk_tokens, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 16, generator=generator).to(dtype) for size in (20, 50))
    upstream = torch.randn(20, generator=generator)
    whole = chunked(hidden, weight, chunk_tokens=20, upstream=upstream)
    pieces = chunked(hidden, weight, chunk_tokens=chunk_tokens, upstream=upstream)
    assert pieces[2].dtype is pieces[3].dtype is dtype
    rtol = 1e-5 if dtype is torch.float32 else 3e-2  # bf16 rounds the sum over tokens after every chunk
    for ours, theirs in zip(pieces, whole, strict=True):
        assert (ours - theirs).abs().max() <= rtol * theirs.abs().max()


def test_a_projection_with_a_gradient_buffer_gets_its_gradient_there():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(20, 16, generator=generator), torch.randn(50, 16, generator=generator)
    upstream = torch.randn(20, generator=generator)
    expected = chunked(hidden, weight, chunk_tokens=20, upstream=upstream)[3]
    weight.requires_grad_()
    weight.main_grad = torch.ones(50, 16)  # of an earlier micro-batch
    logprobs, _ = output_logprobs(
        OutputStates(hidden, weight),
        targets_L=6 + torch.arange(20) % 44,
        inverse_temperature_L=torch.linspace(0.5, 2.0, 20),
        shard=VocabShard.of(50, banned_ids=[3, 5], chunk_tokens=8),
    )
    (logprobs * upstream).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad - 1, expected, atol=1e-5, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.num_elements = max(self.num_elements, *sizes, 0)
        return result


@pytest.mark.parametrize(("num_tokens", "chunk_tokens"), [(4096, 256), (512, 512)])
def test_all_logits_never_exist_at_once(num_tokens, chunk_tokens):
    """4096 tokens of 50 000: 820 MB of logits; with chunks the largest tensor is one chunk's, 51 MB."""
    vocab, width = 50_000, 8
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(num_tokens, width, generator=generator), torch.randn(vocab, width, generator=generator)
    with LargestTensor() as largest:
        chunked(hidden, weight, chunk_tokens=chunk_tokens, upstream=torch.ones(num_tokens))
    assert largest.num_elements == chunk_tokens * vocab


def test_chunks_are_bounded_by_default():
    assert VocabShard.of(151_936, banned_ids=[]).chunk_tokens == 883
    assert VocabShard.of(151_936, banned_ids=[], size=8).chunk_tokens == 7067
    assert VocabShard.of(504, banned_ids=[]).chunk_tokens > 200_000
