"""Every variable-length kernel installed here against the plain attention, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_axpo.actors.packing import Sharing, thd_rows
from nemo_axpo.models.qwen3_vl import thd_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HEADS, GROUPS, CHANNELS = 16, 8, 128
INSTALLED = [kernel for kernel, *found in thd_attention._FAST_KERNELS if thd_attention._is_usable(*found)]


def shared_rows(lengths: list[int], *, num_shared: int):
    """Rows that all begin with the same ``num_shared`` tokens."""
    starts = np.cumsum([0, lengths[0], *(length - num_shared for length in lengths[1:])])
    token_BS = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
    for row, length in enumerate(lengths):
        first = num_shared if row else 0
        token_BS[row, :first] = np.arange(first)
        token_BS[row, first:length] = starts[row] + np.arange(length - first)
    shared_B = np.array([0] + [num_shared] * (len(lengths) - 1))
    sharing = Sharing(token_BS, np.array(lengths), shared_B, source_T=np.arange(starts[-1]))
    return thd_rows(sharing, num_fillers=0)


def attend(rows, *, kernel, dtype):
    """Context and gradients of seeded states, float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(rows.num_queries, 1, heads, CHANNELS, generator=generator).to("cuda", dtype).requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    ]
    context = thd_attention.thd_attention(*states, rows=rows, scale=None, kernel=kernel)
    weights = torch.randn(context.shape, generator=generator).to("cuda", dtype)
    gradients = torch.autograd.grad((context * weights).sum(), states)
    return [tensor.float().cpu() for tensor in (context.detach(), *gradients)]


def test_a_kernel_is_installed():
    assert INSTALLED, "a GPU machine of this project has transformer-engine, flash-attn or a torch with varlen_attn"


@pytest.mark.parametrize("kernel", INSTALLED, ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("num_shared", [0, 300], ids=["alone", "shared beginning"])
def test_kernels_equal_plain_attention(kernel, num_shared):
    rows = shared_rows([700, 512, 301, 1100], num_shared=num_shared).to(torch.device("cuda"))
    expected = attend(rows, kernel=thd_attention.segment_by_segment, dtype=torch.float32)
    got = attend(rows, kernel=kernel, dtype=torch.bfloat16)
    for name, ours, theirs in zip(("context", "query", "key", "value"), got, expected, strict=True):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm(), name
