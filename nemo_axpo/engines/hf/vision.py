"""Image features through the Hugging Face vision tower, computed once per image and policy version."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor


class VisionEncoder:
    """Caches, per image id, ``[1 + DeepStack levels, tokens, hidden]``: the embeddings, then one level per layer.

    The cache holds at most ``max_images`` images (least recently used ones leave first).
    """

    def __init__(self, tower: torch.nn.Module, *, max_images: int, device: torch.device) -> None:
        self._tower: torch.nn.Module | None = tower
        self._max_images = max_images
        self._device = device
        self._features: OrderedDict[str, Tensor] = OrderedDict()
        self.num_encoded = 0

    def encode(self, images: Mapping[str, object]) -> dict[str, Tensor]:
        """Features of ``images`` (id → ``ImageFeatures``), those not known yet through one pass of the tower."""
        missing = {image_id: image for image_id, image in images.items() if image_id not in self._features}
        if missing:
            self._features.update(zip(missing, self._run(list(missing.values()))))
            self.num_encoded += len(missing)
        for image_id in images:
            self._features.move_to_end(image_id)
        found = {image_id: self._features[image_id] for image_id in images}
        while len(self._features) > self._max_images:
            self._features.popitem(last=False)
        return found

    def clear(self) -> None:
        """Forgets every image, as new weights demand."""
        self._features.clear()

    def release(self) -> None:
        """Lets go of the tower and the features."""
        self._tower = None
        self.clear()

    def _run(self, images: list) -> list[Tensor]:
        grids = torch.tensor([image.grid_thw for image in images], device=self._device)
        weight = self._tower.patch_embed.proj.weight
        patches_PD = torch.cat([image.pixel_values_PD for image in images]).to(self._device, weight.dtype)
        merged, deepstack = _tower_outputs(self._tower(patches_PD, grid_thw=grids))
        sizes = (grids.prod(-1) // self._tower.spatial_merge_size**2).tolist()
        return list(torch.stack([merged, *deepstack]).split(sizes, dim=1))


def _tower_outputs(output: object) -> tuple[Tensor, list[Tensor]]:
    """Merged features and DeepStack features: transformers 4.57 returns the tuple itself, 5.x an output object."""
    if isinstance(output, tuple):
        merged, deepstack = output
        return merged, deepstack
    return output.pooler_output, output.deepstack_features
