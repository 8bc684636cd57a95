"""The CPU shim stays inside megatron, and one plain process needs no launcher."""

from __future__ import annotations

import os

import pytest
import torch

from nemo_axpo.actors import cpu_shim, megatron_setup
from nemo_axpo.actors.megatron_setup import ParallelLayout

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the shim is for machines without CUDA")


def test_shim_answers_megatron_and_nobody_else():
    assert cpu_shim.install() and cpu_shim.install()
    from megatron.core.optimizer import clip_grads

    assert clip_grads.torch.zeros(2, device="cuda").device.type == "cpu"
    assert clip_grads.torch.cuda.current_device() == torch.device("cpu")
    assert clip_grads.torch.Tensor is torch.Tensor
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")
    assert torch.zeros(2).type() == "torch.cuda.FloatTensor"  # the one name that reaches everybody
    assert torch.zeros(2).type(torch.int64).dtype is torch.int64


def test_random_states_are_forked():
    from megatron.core import tensor_parallel

    megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=3)
    tracker = tensor_parallel.get_cuda_rng_tracker()
    outside = torch.get_rng_state()
    with tracker.fork():
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), outside)
    with tracker.fork():
        second = torch.rand(4)
    assert not torch.equal(first, second)
    megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=3)
    with tracker.fork():
        assert torch.equal(torch.rand(4), first)


@pytest.mark.parametrize(("tensor_parallel", "before", "after"), [(1, None, None), (2, None, "1"), (2, "32", "32")])
def test_tensor_parallel_layers_get_one_connection(tensor_parallel, before, after, monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", before or "")
    if before is None:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    monkeypatch.setattr(megatron_setup, "_init_model_parallel", lambda *_, **options: None)
    monkeypatch.setattr(megatron_setup, "_seed_generators", lambda seed: None)
    megatron_setup.shutdown()
    megatron_setup.initialize(ParallelLayout(tensor_parallel), device=torch.device("cpu"), seed=0)
    assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == after


def test_layout_that_does_not_divide_the_ranks(monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    megatron_setup.shutdown()
    with pytest.raises(ValueError, match=r"got 2 · 1 with 1 ranks: start 2 ranks"):
        megatron_setup.initialize(ParallelLayout(tensor_parallel=2), device=torch.device("cpu"), seed=0)
    megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=0)


def test_a_rank_waits_for_another_as_long_as_it_is_told_in_every_group(monkeypatch):
    megatron_setup.shutdown()
    given = {}
    with monkeypatch.context() as patch:
        patch.setattr(
            megatron_setup.parallel_state, "initialize_model_parallel", lambda **options: given.update(options)
        )
        patch.setattr(megatron_setup, "_seed_generators", lambda seed: None)
        megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=0, timeout_s=7200.0)
    assert given["distributed_timeout_minutes"] == 120
    megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=0)


def test_every_rank_of_a_node_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert megatron_setup.own_gpu() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert megatron_setup.own_gpu() == 3
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match=r"got LOCAL_RANK=4 with 4 visible: start as many ranks as there are GPUs"):
        megatron_setup.own_gpu()


def test_a_cpu_is_refused_where_megatron_sees_a_gpu(monkeypatch):
    megatron_setup.check_device(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    megatron_setup.check_device(torch.device("cuda"))
    with pytest.raises(
        ValueError, match=r"device=cpu needs a process that sees no GPU; got 2 visible: set device=cuda"
    ):
        megatron_setup.check_device(torch.device("cpu"))
