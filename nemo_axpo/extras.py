"""Optional packages: what each extra is for, and one clear answer where it is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_axpo.errors import MissingExtraError


@dataclass(frozen=True)
class Extra:
    """One extra of the package."""

    module: str
    """Top-level module whose presence says that the extra is installed."""
    purpose: str
    """What needs it, as the subject of a sentence."""


EXTRAS: dict[str, Extra] = {
    "nemo": Extra("nemo", "training under NeMo-Aligner"),
    "te": Extra("transformer_engine", "the Transformer Engine layers (FP8)"),
    "vllm": Extra("vllm", "the vllm engine"),
    "trtllm": Extra("tensorrt_llm", "the trtllm engine"),
    "wandb": Extra("wandb", "logging to Weights & Biases"),
}


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def has_extra(name: str) -> bool:
    """Whether the extra's module can be found; nothing is imported."""
    return importlib.util.find_spec(EXTRAS[name].module) is not None


def require_extra(name: str) -> None:
    """MissingExtraError with the install line where the extra called ``name`` is absent."""
    assert name in EXTRAS, f"unknown extra {name!r}"
    if not has_extra(name):
        extra = EXTRAS[name]
        raise MissingExtraError(
            f"{extra.purpose} needs the Python package {extra.module}, which is not installed: "
            f"pip install 'nemo_axpo[{name}]'   (in a checkout: pip install -e '.[{name}]')"
        )
