"""One warm start and one run of each algorithm, made once and read by every test."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import AXPO, train, warm_start


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """More threads change the last bits of sums, and runs are compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Directory of all runs."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="session")
def checkpoint(study):
    """A policy that calls the tool in about every second rollout and is sometimes right."""
    return warm_start(study)


@pytest.fixture(scope="session")
def axpo(study, checkpoint):
    """An uninterrupted AXPO run with a checkpoint after every step."""
    return train(study / "axpo", *AXPO, checkpoint=checkpoint)


@pytest.fixture(scope="session")
def grpo(study, checkpoint):
    """The same run with GRPO."""
    return train(study / "grpo", "algorithm=grpo", checkpoint=checkpoint)
