"""The rollouts' images as PNG files: each encoded once and shared by all interpreters, which may read them and nothing more.

Files, not messages: an 8K picture is larger than the scratch space of an interpreter, and N rollouts show the same one.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path

from nemo_axpo.data.images import ImageStore
from nemo_axpo.types import ImageId

MAX_KEPT_BYTES = 2 << 30
"""Of files that are kept for the next rollout."""


class ImageFiles:
    """Files of stored images, those used last. Its methods may be called from any thread."""

    def __init__(self, store: ImageStore, *, directory: Path, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        """``directory``: made at the first image, and again where it was removed."""
        self._store, self._directory, self._max_kept_bytes = store, directory, max_kept_bytes
        self._sizes: OrderedDict[ImageId, int] = OrderedDict()
        self._lock = threading.Lock()

    def place(self, image_id: ImageId, path: Path, *, can_share: bool) -> None:
        """A file at ``path`` with the image; it stays there whatever happens to the one kept here.

        ``can_share``: who reads it cannot write it, so that it may be the file that others read. What is at ``path`` already stays:
        the call that placed it was cancelled. OSError where there is no room.
        """
        with self._lock:
            if path.exists():
                return
            kept = self._kept(image_id)
            if not (can_share and _link(kept, path)):
                shutil.copy(kept, path)  # with its rights

    def _kept(self, image_id: ImageId) -> Path:
        path = self._directory / f"{image_id}.png"
        if not path.exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            self._store.image(image_id).save(partial, format="PNG", compress_level=1)
            partial.chmod(0o644)  # for the user that an interpreter becomes
            partial.rename(path)
            self._sizes[image_id] = path.stat().st_size
        self._sizes.move_to_end(image_id)
        self._forget_oldest(but=image_id)
        return path

    def _forget_oldest(self, *, but: ImageId) -> None:
        while sum(self._sizes.values()) > self._max_kept_bytes and next(iter(self._sizes)) != but:
            oldest, _ = self._sizes.popitem(last=False)
            (self._directory / f"{oldest}.png").unlink(missing_ok=True)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or one that allows few of a file
        return False
    return True
