"""Every generator of a process continues where it was."""

from __future__ import annotations

import random

import pytest
import torch

from nemo_axpo.actors import megatron_setup
from nemo_axpo.actors.megatron_setup import ParallelLayout

# isort: split
import numpy as np
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from safetensors.torch import load, save

from nemo_axpo.actors.random_states import random_states, set_random_states


@pytest.fixture(autouse=True)
def seeded():
    megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=5)


def draw() -> list[float]:
    with get_cuda_rng_tracker().fork():
        tracked = torch.rand(1).item()
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item(), tracked]


@pytest.mark.parametrize("has_gauss", [False, True], ids=["fresh", "between the two numbers of a normal pair"])
def test_generators_continue(has_gauss):
    if has_gauss:
        draw()
    states = load(save({name: state.contiguous() for name, state in random_states().items()}))
    expected = [draw() for _ in range(3)]
    assert len({number for numbers in expected for number in numbers}) == 18
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    set_random_states(states)
    assert [draw() for _ in range(3)] == expected
