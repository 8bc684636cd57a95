"""Algorithms under NeMo-Aligner by name, and their modules where users of NeMo-Aligner look for them.

    nemo_axpo.aligner.register()
    from nemo_aligner.algorithms.axpo import AXPOTrainer

Nothing of NeMo is imported before a class is asked for.
"""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_axpo.errors import rule_message

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class AlignerAlgorithm:
    """The four pieces of one algorithm; classes and the entry as ``module:name``."""

    name: str
    """Also the key of its section: ``trainer.<name>``, ``model.<name>``."""
    trainer: str
    actor: str
    entry: str
    """What the entry script runs."""
    config: Path
    """The entry script's YAML file."""

    def load(self, piece: str) -> Any:
        """The class or function that ``trainer``, ``actor`` or ``entry`` names. MissingExtraError without the extra nemo."""
        module, _, name = getattr(self, piece).partition(":")
        return getattr(importlib.import_module(module), name)


_ALGORITHMS: dict[str, AlignerAlgorithm] = {}


def register_algorithm(name: str, *, trainer: str, actor: str, entry: str, config: Path) -> AlignerAlgorithm:
    """Makes an algorithm available as ``name``; ValueError when the name is taken."""
    if name in _ALGORITHMS:
        raise ValueError(rule_message("an algorithm name is registered once", got=repr(name), cure="choose another"))
    _ALGORITHMS[name] = AlignerAlgorithm(name, trainer, actor, entry, config)
    return _ALGORITHMS[name]


def get_algorithm(name: str) -> AlignerAlgorithm:
    """The algorithm registered as ``name``; ValueError that lists the known names otherwise."""
    if name not in _ALGORITHMS:
        rule = f"an algorithm under NeMo-Aligner must be one of {', '.join(sorted(_ALGORITHMS))}"
        raise ValueError(rule_message(rule, got=repr(name), cure="use one of these or register yours"))
    return _ALGORITHMS[name]


def register() -> None:
    """Puts every registered algorithm at ``nemo_aligner.algorithms.<name>``; may be called again.

    The module has the names of NeMo-Aligner's own: the trainer class, and the actor class beside it.
    """
    package = importlib.import_module("nemo_aligner.algorithms")
    for name, algorithm in _ALGORITHMS.items():
        module = _lazy_module(f"{package.__name__}.{name}", algorithm)
        sys.modules.setdefault(module.__name__, module)
        setattr(package, name, sys.modules[module.__name__])


def _lazy_module(name: str, algorithm: AlignerAlgorithm) -> types.ModuleType:
    """A module whose classes are imported when they are first asked for."""
    pieces = {getattr(algorithm, piece).partition(":")[2]: piece for piece in ("trainer", "actor")}
    module = types.ModuleType(name, f"{algorithm.name} of nemo_axpo under NeMo-Aligner.")

    def __getattr__(attribute: str) -> Any:
        if attribute not in pieces:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}; it has {', '.join(pieces)}")
        return algorithm.load(pieces[attribute])

    module.__getattr__ = __getattr__
    module.__all__ = list(pieces)
    return module


AXPO = register_algorithm(
    "axpo",
    trainer="nemo_axpo.aligner.trainer:AXPOTrainer",
    actor="nemo_axpo.aligner.actor_model:MegatronQwen3VLAXPOActorModel",
    entry="nemo_axpo.aligner.train_qwen3_vl_axpo_actor:main",
    config=_HERE / "conf" / "qwen3_vl_axpo_actor.yaml",
)
