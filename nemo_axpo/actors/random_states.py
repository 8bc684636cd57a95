"""The random generators of a process as tensors, so that a checkpoint holds them without pickle.

The loop draws nothing from them: its seeds are derived from (run, step, question, …). They are kept for what a model may
draw, dropout above all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from nemo_axpo.actors import cpu_shim

cpu_shim.install()  # before megatron is imported below

# isort: split
import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

_TRACKER = "megatron."
_NO_GAUSS = float("nan")


def random_states() -> dict[str, Tensor]:
    """States of the generators of Python, numpy, torch (CPU and this process's GPU) and megatron's tracker."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python.words": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": torch.tensor(_NO_GAUSS if gauss is None else gauss, dtype=torch.float64),
        "numpy.words": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy.gauss": torch.tensor(cached, dtype=torch.float64),
        "torch.cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["torch.cuda"] = torch.cuda.get_rng_state()
    return states | {_TRACKER + name: state.cpu() for name, state in get_cuda_rng_tracker().get_states().items()}


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Restores what :func:`random_states` gave."""
    version, *words = states["python.words"].tolist()
    gauss = float(states["python.gauss"])
    random.setstate((version, tuple(words), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy.words"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(states["numpy.gauss"])))
    torch.set_rng_state(states["torch.cpu"])
    if torch.cuda.is_available() and "torch.cuda" in states:
        torch.cuda.set_rng_state(states["torch.cuda"])
    tracked = {name.removeprefix(_TRACKER): state for name, state in states.items() if name.startswith(_TRACKER)}
    get_cuda_rng_tracker().set_states(tracked)
