"""Names and shapes of the weights an engine takes, refused in the same words by every engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor
from transformers import Qwen3VLConfig

from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied, parameter_shapes


class WeightChecks:
    """Knows the tensors of one model under their Hugging Face names."""

    def __init__(self, config: Qwen3VLConfig) -> None:
        self._shapes = parameter_shapes(config)
        self._optional = {LM_HEAD} if is_tied(config) else set()
        """A tied output projection may be left out."""

    def checked(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same stream. ValueError at a tensor that is unknown or misshapen, and at the end for missing ones."""
        missing = set(self._shapes) - self._optional
        for name, tensor in named_tensors:
            self._check(name, tensor)
            missing.discard(name)
            yield name, tensor
        if missing:
            raise ValueError(
                f"every tensor of the model must be given: {len(missing)} are missing, first {sorted(missing)[:3]}; "
                "give the complete checkpoint under its Hugging Face names"
            )

    def _check(self, name: str, tensor: Tensor) -> None:
        if name not in self._shapes and name not in self._optional:
            raise ValueError(
                f"tensor {name!r} does not belong to this Qwen3-VL; names are Hugging Face's (model.language_model.…, "
                "model.visual.…, lm_head.weight): check that the checkpoint and the config match"
            )
        expected = self._shapes.get(name, tuple(tensor.shape))
        if tuple(tensor.shape) != tuple(expected):
            raise ValueError(
                f"tensor {name!r} must have shape {tuple(expected)}, got {tuple(tensor.shape)}: the checkpoint and the "
                "config describe different models"
            )
