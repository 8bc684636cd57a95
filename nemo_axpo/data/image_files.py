"""Pictures on disk under their content hash, written whole or not at all, lossless."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nemo_axpo.data.images import ImageStore, decode_image
from nemo_axpo.errors import DataError, rule_message
from nemo_axpo.types import ImageId


class ImageFiles:
    """A directory of ``<image id>.png``."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def path(self, image_id: ImageId) -> Path:
        """File of an image."""
        return self._directory / f"{image_id}.png"

    def save(self, image_ids: Iterable[ImageId], *, images: ImageStore) -> None:
        """Writes the images that are not there yet."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for image_id in image_ids:
            path = self.path(image_id)
            if not path.exists():
                temporary = path.with_name(f".{path.name}.{os.getpid()}")
                images.image(image_id).save(temporary, format="PNG")
                os.replace(temporary, path)

    def load(self, image_ids: Iterable[ImageId], *, images: ImageStore) -> None:
        """Puts the images into the store. DataError for a file that is missing, broken, or another picture."""
        for image_id in image_ids:
            if image_id in images:
                continue
            path, cure = self.path(image_id), "restore the file from where the trajectories were written"
            try:
                found = images.add(decode_image(path))
            except ValueError as error:
                rule = "every image of a trajectory must be in its directory"
                raise DataError(rule_message(rule, got=error, cure=cure)) from None
            if found != image_id:
                rule = f"{path} must be the picture its name is the hash of"
                raise DataError(rule_message(rule, got=f"a picture with hash {found[:12]}", cure=cure))
