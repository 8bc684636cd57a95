"""An image as data files give it: a path, encoded bytes, base64 text, a data URL, or ``{"bytes", "path"}``."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from nemo_axpo.errors import DataError, rule_message

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
"""First bytes of PNG, JPEG, WebP, GIF, BMP and TIFF: text that decodes to them is an image and not a path."""


@dataclass(frozen=True)
class ImageSource:
    """One encoded image: its bytes, or the path of its file."""

    data: bytes | None = None
    path: str | None = None
    """Of the file; beside ``data`` only a name."""
    where: str = field(default="image", compare=False)
    """File, row and field it was read from, for messages."""

    def read_bytes(self) -> bytes:
        """The encoded image. DataError where its file cannot be read."""
        if self.data is not None:
            return self.data
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise DataError(
                rule_message(f"{self.where} must be a file that can be read", got=error, cure=_CURE)
            ) from None

    def load(self) -> Image.Image:
        """The decoded image. DataError naming the row and field where it is not a whole image."""
        from nemo_axpo.data.images import decode_image  # loads torch, which readers of rows can do without

        try:
            return decode_image(self.read_bytes())
        except DataError:
            raise
        except ValueError as error:
            raise DataError(rule_message(f"{self.where} must be a whole image", got=error, cure=_CURE)) from None


def image_source(value: Any, *, where: str, root: str | Path | None = None) -> ImageSource:
    """What ``value`` says an image is. ``where``: file, row and field; ``root``: where relative paths start.

    DataError for a value of another kind, and for a path at which there is no file.
    """
    if isinstance(value, Mapping):
        return _from_mapping(value, where=where, root=root)
    if isinstance(value, bytes | bytearray | memoryview) and len(value):
        return ImageSource(bytes(value), where=where)
    if isinstance(value, str) and value.strip():
        data = _decoded(value, where=where)
        return ImageSource(data, where=where) if data is not None else _from_path(value, where=where, root=root)
    rule = f'{where} must be a path, bytes, base64 text, a data URL or {{"bytes", "path"}}'
    raise DataError(rule_message(rule, got=shown(value), cure=_CURE))


def shown(value: Any) -> str:
    """A value in a message: its type, and what it begins with."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


_CURE = "correct the row or drop it"


def _from_mapping(value: Mapping[str, Any], *, where: str, root: str | Path | None) -> ImageSource:
    """``{"bytes", "path"}`` as HF datasets stores images; bytes may also be base64 text, as JSON has no bytes."""
    data, path = value.get("bytes"), value.get("path")
    if data:
        source = image_source(data, where=f"{where}.bytes", root=root)
        return ImageSource(source.read_bytes(), path, where=where)
    if isinstance(path, str) and path:
        return _from_path(path, where=where, root=root)
    rule = f"{where} must hold bytes or a path"
    raise DataError(rule_message(rule, got=shown(dict(value)), cure=_CURE))


def _from_path(value: str, *, where: str, root: str | Path | None) -> ImageSource:
    path = Path(root or ".") / value
    if not path.is_file():
        cure = "restore the file, correct the path, or set the directory that relative paths start from (image_root)"
        raise DataError(rule_message(f"{where} must be an image file that exists", got=path, cure=cure))
    return ImageSource(path=str(path), where=where)


def _decoded(text: str, *, where: str) -> bytes | None:
    """Bytes of a data URL or of base64 text; None where ``text`` is neither."""
    if match := _DATA_URL.match(text):
        try:
            return base64.b64decode(text[match.end() :], validate=True)
        except binascii.Error as error:
            raise DataError(rule_message(f"{where} must hold whole base64", got=error, cure=_CURE)) from None
    if not _BASE64.fullmatch(text):
        return None
    try:
        data = base64.b64decode(text)
    except binascii.Error:
        return None
    return data if data.startswith(_SIGNATURES) else None
