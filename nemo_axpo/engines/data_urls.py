"""Pictures on the wire: PNG in a data URL, which loses nothing."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

from nemo_axpo.types import ImageId

_MAX_KEPT_CHARS = 2**31
"""All rollouts of a question show the same pictures in every turn, and each is encoded while nothing else runs; 2 GiB are the
questions and crops of a large step. What was asked longest ago is encoded again."""
_COMPRESSION = 1
"""Level of zlib: within a cluster the time to encode matters more than the bytes."""


class DataUrls:
    """Data URLs of pictures by their ids."""

    def __init__(self, picture: Callable[[ImageId], Image.Image], *, max_kept_chars: int = _MAX_KEPT_CHARS) -> None:
        """``picture``: the picture in RGB. ``model_image`` of an image store where the server shows it to our model, ``image``
        where the server is free in what it makes of it. ``max_kept_chars``: of all URLs that are kept together."""
        self._picture, self._max_kept_chars = picture, max_kept_chars
        self._kept: OrderedDict[ImageId, str] = OrderedDict()
        self._num_chars = 0

    def url(self, image_id: ImageId) -> str:
        """``data:image/png;base64,…``. Errors of ``picture``."""
        if image_id in self._kept:
            self._kept.move_to_end(image_id)
            return self._kept[image_id]
        url = self._kept[image_id] = _encode(self._picture(image_id))
        self._num_chars += len(url)
        while self._num_chars > self._max_kept_chars:
            self._num_chars -= len(self._kept.popitem(last=False)[1])
        return url


def _encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
