"""Lets a CUDA build of torchvision be imported next to torch for the CPU, where PyPI offers no other build.

Its compiled operators need CUDA's libraries, so two of them are never declared, and ``import torchvision`` fails where it
gives them a shape function (``torchvision::nms does not exist``). Declaring them is enough: transforms, which vLLM's image
processors use, are plain Python. Processes that vLLM starts need it too, so launcher_scripts/test_vllm.sh has Python import
this module whenever it starts (a ``.pth`` file of the environment); it costs nothing until torchvision is imported.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from types import ModuleType

_OPERATORS = ("nms", "qnms")


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Finds nothing; declares the operators when torchvision is looked for."""

    library: object = None
    """Kept alive: the operators vanish with it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            self._declare()

    def _declare(self) -> None:
        import torch

        if torch.version.cuda is not None:
            return
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DeclareOperators.library = library


sys.meta_path.insert(0, _DeclareOperators())
