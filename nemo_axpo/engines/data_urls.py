"""Pictures on the wire: PNG at full size in a data URL, so that the server processes the very pixels that were rendered."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from typing import Any

from nemo_axpo.types import ImageId

_MAX_KEPT = 128
"""All rollouts of a question show the same pictures in every turn; more than these are encoded again."""
_COMPRESSION = 1
"""Level of zlib: within a cluster the time to encode matters more than the bytes."""


class DataUrls:
    """Data URLs of an image store's pictures."""

    def __init__(self, image_store: Any) -> None:
        """``image_store``: anything with ``image(image_id)``, a PIL image in RGB."""
        self._image_store = image_store
        self._kept: OrderedDict[ImageId, str] = OrderedDict()

    def url(self, image_id: ImageId) -> str:
        """``data:image/png;base64,…``. KeyError for an image that is not in the store."""
        if image_id not in self._kept:
            self._kept[image_id] = _encode(self._image_store.image(image_id))
        self._kept.move_to_end(image_id)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return self._kept[image_id]


def _encode(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
