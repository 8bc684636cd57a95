"""The two forms of packed rows give the same attention and gradients; the calls of the GPU kernels say what they must."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from tiny_qwen3_vl import IMAGE, MERGE, VIDEO, RandomImages, mixed_samples, sample

from nemo_axpo.actors.actor import packing_form
from nemo_axpo.actors.packing import VisionTokens, pack_rows
from nemo_axpo.models.qwen3_vl import thd_attention
from nemo_axpo.models.qwen3_vl.attention import PackedAttention

HEADS, GROUPS, CHANNELS = 4, 2, 8


def pack(rows, *, form, multiple_of=1):
    vision = VisionTokens(IMAGE, VIDEO, MERGE)
    return pack_rows(rows, image_store=RandomImages(), vision=vision, multiple_of=multiple_of, form=form)[0]


def attend(inputs, *, seed=0):
    """Context of random states, and the gradients of a random sum of it."""
    generator = torch.Generator().manual_seed(seed)

    def states(heads):
        shape = (inputs.token_ids_T.numel(), 1, heads, CHANNELS)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = states(HEADS), states(GROUPS), states(GROUPS)
    context = PackedAttention(softmax_scale=None)(query, key, value, rows=inputs.rows)
    weights = torch.randn(context.shape, generator=generator, dtype=torch.float64)
    return context.detach(), *torch.autograd.grad((context * weights).sum(), (query, key, value))


def long_rows():
    """Rows beyond the length up to which the padded form masks, one of them a beginning of another."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 80, (1200,), generator=generator).tolist()
    return [sample(*tokens, trained=5), sample(*tokens[:1100], trained=4), sample(*tokens[:1050], 7, 8, trained=2)]


def test_the_example_of_the_inputs():
    a, b, c, d, e = 1, 2, 3, 4, 5
    inputs = pack([sample(a, b, d, e, trained=1), sample(a, b, c, trained=1)], form="thd")
    rows = inputs.rows
    assert inputs.token_ids_T.tolist() == [a, b, c, d, e]
    assert rows.key_K.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert rows.query_start_R.tolist() == [0, 3, 5] and rows.key_start_R.tolist() == [0, 3, 7]
    assert rows.query_start_R.dtype == rows.key_start_R.dtype == torch.int32
    assert (rows.max_queries, rows.max_keys, rows.num_queries) == (3, 4, 5)


def test_rows_without_a_new_token_are_no_segment_and_fillers_are_one():
    rows = pack([sample(1, 2, 3, trained=1), sample(1, 2, 3, trained=1)], form="thd", multiple_of=4).rows
    assert rows.key_K.tolist() == [0, 1, 2, 3]
    assert rows.query_start_R.tolist() == rows.key_start_R.tolist() == [0, 3, 4]


@pytest.mark.parametrize("rows", [mixed_samples(), long_rows()], ids=["images", "long"])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_both_forms_attend_alike(rows, multiple_of):
    padded, thd = (pack(rows, form=form, multiple_of=multiple_of) for form in ("padded", "thd"))
    num_fillers = -len(set(padded.rows.source_T.tolist())) % multiple_of
    num_real = padded.token_ids_T.numel() - num_fillers
    assert torch.equal(padded.token_ids_T, thd.token_ids_T)
    for ours, theirs in zip(attend(thd), attend(padded), strict=True):
        # What a filler attends is used by nobody and differs: itself here, its original there.
        if not num_fillers:
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
        elif ours.dim() == 3:
            assert torch.allclose(ours[:num_real], theirs[:num_real], rtol=0, atol=1e-12)


def test_a_position_sees_its_row_up_to_itself():
    # by hand: with equal scores a context is the mean of the values seen; row 0: 1 2 3, row 1: 1 2 4 5
    rows = pack([sample(1, 2, 3, trained=1), sample(1, 2, 4, 5, trained=1)], form="thd").rows
    zeros, values = torch.zeros(5, 1, 1, 1), torch.tensor([1.0, 2.0, 3.0, 40.0, 50.0]).view(5, 1, 1, 1)
    context = PackedAttention(softmax_scale=None)(zeros, zeros, values, rows=rows)
    expected = torch.tensor([1.0, 1.5, 2.0, 43 / 3, 93 / 4])
    assert torch.allclose(context.flatten(), expected)


def test_auto_packs_for_a_kernel_only_where_there_is_one(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert packing_form("auto", device=cpu, dtype=torch.bfloat16) == "padded"
    assert packing_form("auto", device=cuda, dtype=torch.float32) == "padded"
    assert packing_form("thd", device=cpu, dtype=torch.float32) == "thd"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(thd_attention, "_is_usable", lambda *_: True)
    assert packing_form("auto", device=cuda, dtype=torch.bfloat16) == "thd"
    assert thd_attention.choose_kernel(cuda, dtype=torch.bfloat16) is thd_attention.transformer_engine
    monkeypatch.setattr(thd_attention, "_is_usable", lambda module, *_: module == "flash_attn")
    assert thd_attention.choose_kernel(cuda, dtype=torch.bfloat16) is thd_attention.flash_attention
    monkeypatch.setattr(thd_attention, "_is_usable", lambda *_: False)
    assert packing_form("auto", device=cuda, dtype=torch.bfloat16) == "padded"


def test_an_a100_attends_by_transformer_engine_only_with_flash_attn(monkeypatch):
    cuda, installed = torch.device("cuda"), {"transformer_engine.pytorch", "flash_attn", "torch.nn.attention.varlen"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(thd_attention, "_is_usable", lambda module, *_: module in installed)
    assert thd_attention.choose_kernel(cuda, dtype=torch.bfloat16) is thd_attention.transformer_engine
    installed.remove("flash_attn")
    assert thd_attention.choose_kernel(cuda, dtype=torch.bfloat16) is thd_attention.torch_varlen
    installed.remove("torch.nn.attention.varlen")
    assert packing_form("auto", device=cuda, dtype=torch.bfloat16) == "padded"


def states_of(rows, *, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    sizes = ((rows.num_queries, HEADS), (rows.key_K.numel(), GROUPS), (rows.key_K.numel(), GROUPS))
    return [torch.randn(*size, CHANNELS, generator=generator).to(device) for size in sizes]


def test_torch_takes_the_call():
    # torch's shape function of the kernel, which runs without a GPU
    rows = pack(mixed_samples(), form="thd").rows.to(torch.device("meta"))
    context = thd_attention.torch_varlen(*states_of(rows, device="meta"), rows=rows, scale=None)
    assert context.shape == (rows.num_queries, HEADS, CHANNELS)
    assert thd_attention._is_usable("torch.nn.attention.varlen", "varlen_attn", "enable_gqa")
    assert not thd_attention._is_usable("torch.nn.attention.varlen", "varlen_attn", "no_such_argument")
    assert not thd_attention._is_usable("no_such_package", "varlen_attn", "enable_gqa")


def test_the_call_of_flash_attn(monkeypatch):
    """flash-attn's documented arguments (2.8), computed by our reference."""
    rows = pack(mixed_samples(), form="thd").rows

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale, causal
    ):
        assert causal and (max_seqlen_q, max_seqlen_k) == (rows.max_queries, rows.max_keys)
        assert cu_seqlens_q is rows.query_start_R and cu_seqlens_k is rows.key_start_R
        return thd_attention.segment_by_segment(q, k, v, rows=rows, scale=softmax_scale)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    expected = thd_attention.segment_by_segment(*states_of(rows), rows=rows, scale=0.3)
    assert torch.equal(thd_attention.flash_attention(*states_of(rows), rows=rows, scale=0.3), expected)


def test_the_call_of_transformer_engine(monkeypatch):
    """Transformer Engine's arguments (2.9) and its flat output ``[T, heads · D]``, computed by our reference."""
    rows = pack(mixed_samples(), form="thd").rows

    class DotProductAttention:
        def __init__(
            self, num_attention_heads, kv_channels, num_gqa_groups, *, attention_dropout, qkv_format, attn_mask_type,
            attention_type, softmax_scale,
        ):  # fmt: skip
            assert (num_attention_heads, kv_channels, num_gqa_groups) == (HEADS, CHANNELS, GROUPS)
            assert (attention_dropout, attention_type, qkv_format) == (0.0, "cross", "thd")
            self.mask, self.scale = attn_mask_type, softmax_scale

        def __call__(
            self, query_layer, key_layer, value_layer, *, qkv_format, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q,
            max_seqlen_kv, attn_mask_type,
        ):  # fmt: skip
            assert qkv_format == "thd" and self.mask == attn_mask_type == "padding_causal_bottom_right"
            assert (max_seqlen_q, max_seqlen_kv) == (rows.max_queries, rows.max_keys)
            assert cu_seqlens_q is rows.query_start_R and cu_seqlens_kv is rows.key_start_R
            states = query_layer, key_layer, value_layer
            return thd_attention.segment_by_segment(*states, rows=rows, scale=self.scale).flatten(1)

    package, module = ModuleType("transformer_engine"), ModuleType("transformer_engine.pytorch")
    module.DotProductAttention = DotProductAttention
    package.pytorch = module
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", module)
    thd_attention._te_module.cache_clear()
    expected = thd_attention.segment_by_segment(*states_of(rows), rows=rows, scale=0.3)
    assert torch.equal(thd_attention.transformer_engine(*states_of(rows), rows=rows, scale=0.3), expected)
    thd_attention._te_module.cache_clear()
