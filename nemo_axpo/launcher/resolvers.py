"""The OmegaConf resolvers that NeMo's files use (NeMo-Framework-Launcher ``main.py``, NeMo-Aligner's entry scripts)."""

from __future__ import annotations

import math
from collections.abc import Callable

from omegaconf import OmegaConf

RESOLVERS: dict[str, Callable[[float, float], float]] = {
    "multiply": lambda x, y: x * y,
    "int_div": lambda x, y: x // y,
    "subtract": lambda x, y: x - y,
    "divide_ceil": lambda x, y: math.ceil(x / y),
    "divide_floor": lambda x, y: math.floor(x / y),
}


def register_resolvers() -> None:
    """``${multiply:2,3}`` and its like from here on; NeMo's own registrations are replaced by equal ones."""
    for name, function in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, function, replace=True)
