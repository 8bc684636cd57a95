"""Pictures on the wire: PNG in a data URL, which loses nothing."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

from nemo_axpo.types import ImageId

_MAX_KEPT = 128
"""All rollouts of a question show the same pictures in every turn; more than these are encoded again."""
_COMPRESSION = 1
"""Level of zlib: within a cluster the time to encode matters more than the bytes."""


class DataUrls:
    """Data URLs of pictures by their ids."""

    def __init__(self, picture: Callable[[ImageId], Image.Image]) -> None:
        """``picture``: the picture in RGB. ``model_image`` of an image store where the server shows it to our model, ``image``
        where the server is free in what it makes of it."""
        self._picture = picture
        self._kept: OrderedDict[ImageId, str] = OrderedDict()

    def url(self, image_id: ImageId) -> str:
        """``data:image/png;base64,…``. Errors of ``picture``."""
        if image_id not in self._kept:
            self._kept[image_id] = _encode(self._picture(image_id))
        self._kept.move_to_end(image_id)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return self._kept[image_id]


def _encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
